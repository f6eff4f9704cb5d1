//! What is known of a value without rendering: its type, and the value itself where the template
//! says it.

use std::rc::Rc;

/// What a condition comes to over the conversations that a template is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Truth {
    No,
    Yes,
    /// Each in some turn or conversation.
    Both,
    /// Not known.
    Open,
}

impl Truth {
    pub(super) fn of(is: bool) -> Self {
        if is { Self::Yes } else { Self::No }
    }

    pub(super) fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Yes => Self::No,
            other => other,
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, x) | (x, Self::Yes) => x,
            (Self::Both, Self::Both) => Self::Both,
            _ => Self::Open,
        }
    }

    pub(super) fn or(self, other: Self) -> Self {
        self.not().and(other.not()).not()
    }

    pub(super) fn can_be(self, is: bool) -> bool {
        self != Self::of(!is)
    }
}

/// A string.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Text {
    Known(Rc<str>),
    /// `user`, `assistant` or `system`: the role of a message, by its number.
    Role(usize),
    /// What people write: of any language, of several words, not empty.
    Content,
    /// A part of that, cut by place; a rule says where it comes out otherwise.
    Cut(&'static str),
    Any,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Unknown,
    Undefined,
    None,
    Bool(Truth),
    Int(Option<i64>),
    /// A number of messages or turns: 0, 1, 2 or so, one or the other in some conversation.
    Turns,
    /// The number of characters of a text that is not ASCII.
    Characters,
    Float(Option<f64>),
    Text(Text),
    List(Rc<List>),
    Dict(Rc<Dict>),
    /// One of `messages`: 0, [`AFTER_FIRST`], or that of a loop's turn, by the number of the loop.
    Message(usize),
    /// A dictionary of which nothing is known.
    AnyDict,
    Space(usize),
    Macro(usize),
    Loop,
    Function(&'static str),
    /// A method of a value.
    Method(Rc<Value>, Rc<str>),
}

/// The number of any message but the first, which no system message is.
pub(super) const AFTER_FIRST: usize = 1;

/// A list, tuple or what Python iterates over.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct List {
    /// All of its items, if they are known.
    pub(super) items: Option<Vec<Value>>,
    /// What any of the items is.
    pub(super) item: Value,
    pub(super) shape: Shape,
    /// How long it is at least, in some conversation.
    pub(super) at_least: usize,
    /// How many values it is made of.
    size: usize,
}

/// A dictionary, all of it known; numbers are keys with a `#`.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Dict {
    pub(super) entries: Vec<(String, Value)>,
    size: usize,
}

/// The most values that one is made of; of what has more, less is known. Comparing and dropping one
/// recurses, and lists that hold one list twice double at each level.
const MAX_SIZE: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shape {
    List,
    Tuple,
    /// Printed as neither, such as `dict.keys()` or `range`.
    Lazy,
    /// What Python makes as it goes: without a length or places.
    Generator,
}

/// Types as engines sort their filters and methods by them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Kind {
    Unknown,
    Undefined,
    None,
    Bool,
    Int,
    Float,
    Text,
    List,
    Dict,
    Space,
    Function,
}

impl Text {
    /// A text that something was taken from, or that was changed a little.
    pub(super) fn like(&self) -> Self {
        match self {
            Self::Content => Self::Content,
            Self::Cut(rule) => Self::Cut(rule),
            _ => Self::Any,
        }
    }
}

impl Value {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(Text::Known(text.into()))
    }

    pub(super) fn any_text() -> Self {
        Self::Text(Text::Any)
    }

    pub(super) fn bool(is: bool) -> Self {
        Self::Bool(Truth::of(is))
    }

    pub(super) fn known_list(items: Vec<Value>, shape: Shape) -> Self {
        let item = match items.len() {
            2.. if items.iter().all(|item| matches!(item, Self::Int(Some(0..=3)))) => Self::Turns,
            _ => items.iter().cloned().reduce(|a, b| a.join(&b)).unwrap_or(Self::Unknown),
        };
        let size = 1 + items.iter().map(Self::size).sum::<usize>();
        if size > MAX_SIZE {
            return Self::list_of(item, shape, items.len());
        }
        Self::List(Rc::new(List { at_least: items.len(), items: Some(items), item, shape, size }))
    }

    pub(super) fn list_of(item: Value, shape: Shape, at_least: usize) -> Self {
        let size = 1 + item.size();
        let (item, size) = if size > MAX_SIZE { (Self::Unknown, 2) } else { (item, size) };
        Self::List(Rc::new(List { items: None, item, shape, at_least, size }))
    }

    pub(super) fn dict(entries: Vec<(String, Value)>) -> Self {
        let size = 1 + entries.iter().map(|(_, value)| value.size()).sum::<usize>();
        if size > MAX_SIZE { Self::AnyDict } else { Self::Dict(Rc::new(Dict { entries, size })) }
    }

    fn size(&self) -> usize {
        match self {
            Self::List(list) => list.size,
            Self::Dict(dict) => dict.size,
            Self::Method(of, _) => 1 + of.size(),
            _ => 1,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Unknown => Kind::Unknown,
            Self::Undefined => Kind::Undefined,
            Self::None => Kind::None,
            Self::Bool(_) => Kind::Bool,
            Self::Int(_) | Self::Turns | Self::Characters => Kind::Int,
            Self::Float(_) => Kind::Float,
            Self::Text(_) => Kind::Text,
            Self::List(_) => Kind::List,
            Self::Dict(_) | Self::Message(_) | Self::AnyDict | Self::Loop => Kind::Dict,
            Self::Space(_) => Kind::Space,
            Self::Macro(_) | Self::Function(_) | Self::Method(..) => Kind::Function,
        }
    }

    pub(super) fn truth(&self) -> Truth {
        match self {
            Self::Unknown | Self::AnyDict => Truth::Open,
            Self::Undefined | Self::None => Truth::No,
            Self::Bool(truth) => *truth,
            Self::Turns => Truth::Both,
            Self::Int(n) => n.map_or(Truth::Open, |n| Truth::of(n != 0)),
            Self::Float(x) => x.map_or(Truth::Open, |x| Truth::of(x != 0.0)),
            Self::Text(Text::Known(text)) => Truth::of(!text.is_empty()),
            Self::Text(Text::Any | Text::Cut(_)) => Truth::Open,
            Self::List(list) => match &list.items {
                Some(items) => Truth::of(!items.is_empty()),
                None if list.at_least > 0 => Truth::Yes,
                None => Truth::Open,
            },
            Self::Dict(dict) => Truth::of(!dict.entries.is_empty()),
            _ => Truth::Yes,
        }
    }

    /// What is true of both.
    pub(super) fn join(&self, other: &Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a.clone(),
            (Self::Bool(a), Self::Bool(b)) => {
                let known = |t| matches!(t, Truth::Yes | Truth::No | Truth::Both);
                Self::Bool(if known(*a) && known(*b) { Truth::Both } else { Truth::Open })
            }
            // Templates that take the system message off have `messages[1:]` in one branch, and in
            // the other messages that begin with no system message.
            (Self::Message(AFTER_FIRST), Self::Message(_)) | (Self::Message(_), Self::Message(AFTER_FIRST)) => {
                Self::Message(AFTER_FIRST)
            }
            (Self::Message(_), Self::Message(_)) => Self::Message(0),
            (Self::Text(Text::Role(_)), Self::Text(Text::Role(_))) => Self::Text(Text::Role(0)),
            (Self::Text(_), Self::Text(_)) => Self::any_text(),
            (a, b) if a.kind() == Kind::Int && b.kind() == Kind::Int => Self::Int(None),
            (Self::Float(_), Self::Float(_)) => Self::Float(None),
            (Self::List(a), Self::List(b)) if a.shape == b.shape => {
                let (empty_a, empty_b) =
                    (a.items.as_ref().is_some_and(Vec::is_empty), b.items.as_ref().is_some_and(Vec::is_empty));
                let item = match (empty_a, empty_b) {
                    (true, _) => b.item.clone(),
                    (_, true) => a.item.clone(),
                    _ => a.item.join(&b.item),
                };
                Self::list_of(item, a.shape, a.at_least.min(b.at_least))
            }
            (a, b) if a.kind() == Kind::Dict && b.kind() == Kind::Dict => Self::AnyDict,
            _ => Self::Unknown,
        }
    }

    /// The type, without the value.
    pub(super) fn widened(&self) -> Self {
        match self {
            Self::Bool(_) => Self::Bool(Truth::Open),
            Self::Int(_) | Self::Turns | Self::Characters => Self::Int(None),
            Self::Float(_) => Self::Float(None),
            Self::Text(_) => Self::any_text(),
            Self::List(list) if list.items.as_ref().is_some_and(Vec::is_empty) => {
                Self::list_of(Self::Unknown, list.shape, 0)
            }
            Self::List(list) => Self::list_of(list.item.widened(), list.shape, 0),
            Self::Dict(_) | Self::AnyDict => Self::AnyDict,
            other if matches!(other.kind(), Kind::Function | Kind::Space) => other.clone(),
            Self::Message(_) => Self::Message(0),
            _ => Self::Unknown,
        }
    }

    /// Whether it is a text of more than ASCII, in some conversation.
    pub(super) fn is_wide(&self) -> bool {
        match self {
            Self::Text(Text::Content) => true,
            Self::Text(Text::Known(text)) => !text.is_ascii(),
            _ => false,
        }
    }

    /// The text that the template itself says.
    pub(super) fn known_text(&self) -> Option<&str> {
        match self {
            Self::Text(Text::Known(text)) => Some(text),
            _ => None,
        }
    }

    /// What a loop over it meets, and how many of them at least; nothing if there is no loop over it.
    pub(super) fn items(&self) -> Option<(Value, Option<usize>)> {
        match self {
            Self::List(list) => Some((list.item.clone(), Some(list.items.as_ref().map_or(list.at_least, Vec::len)))),
            Self::Dict(dict) => Some((Self::any_text(), Some(dict.entries.len()))),
            Self::Message(_) => Some((Self::any_text(), Some(2))),
            Self::AnyDict => Some((Self::any_text(), None)),
            Self::Text(_) => Some((Self::any_text(), None)),
            Self::Unknown => Some((Self::Unknown, None)),
            Self::Undefined => Some((Self::Unknown, Some(0))),
            _ => None,
        }
    }
}
