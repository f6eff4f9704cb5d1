//! A walk over the statements of a template in the order in which they run, each branch once that
//! some conversation takes.
//!
//! What is in force at a statement is kept by name: values as far as they are known, whether a name
//! was surely set in this turn of a loop, and what was printed in it. Nothing is rendered. A loop's
//! body is walked once, a macro's at most [`MAX_CALLS`] times, so that the work grows with the
//! source.

use std::collections::HashMap;

use super::names::Peer;
use super::rules;
use super::syntax::{Id, Macro, Parsed, Statement, Target};
use super::values::{AFTER_FIRST, Kind, Shape, Truth, Value};

/// How often a macro's body is walked, with the arguments of its first calls.
const MAX_CALLS: usize = 3;
/// Statements, expressions and macros inside each other.
const MAX_DEPTH: usize = 400;
/// Expressions and statements in all.
const MAX_STEPS: usize = 1 << 20;

/// Who renders, which decides what names a template is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Caller {
    /// transformers and transformers.js: tools and documents are none.
    Transformers,
    /// llama.cpp's server: they are not there, and `enable_thinking` is.
    Server,
}

/// A difference, met on the way.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Met {
    Rule(&'static str),
    /// A rule where only a condition looks at the value: other text is hardly another outcome.
    Unseen(&'static str),
    /// A filter, test, method or function that the caller's engine lacks for this type.
    Missing(&'static str, String, Kind),
}

#[derive(Clone, Debug)]
struct Slot {
    value: Value,
    /// Set on every way to here, in this turn of the loop that the scope belongs to.
    is_sure: bool,
}

#[derive(Default, Debug)]
struct Scope<'a> {
    names: HashMap<&'a str, Slot>,
    turns: Option<Turns<'a>>,
}

/// A loop's own.
#[derive(Default, Debug)]
struct Turns<'a> {
    /// There is a second turn in some conversation.
    again: bool,
    is_of_messages: bool,
    /// Names read where this turn has not surely set them, with what they were.
    reads: Vec<(&'a str, usize, Value)>,
    /// Names set in the loop, with what they became.
    sets: HashMap<&'a str, Value>,
    printed: bool,
    /// Printed since the outermost `if` of the loop's body.
    printed_in_if: bool,
    ifs: usize,
}

/// Bits of `user`, `assistant` and `system`.
type Roles = u8;
const ALL: Roles = 7;
const SYSTEM: Roles = 4;

/// What a branch changed, to be taken back: scope, name and what was there before.
type Journal<'a> = Vec<(usize, &'a str, Option<Slot>)>;

#[derive(Debug)]
struct Defined<'p, 'a> {
    body: &'p Macro<'a>,
    /// Scopes that it sees.
    sees: usize,
    /// Attributes of namespaces that it sets.
    attributes: Vec<&'a str>,
    calls: usize,
    is_running: bool,
}

pub(super) struct Walk<'p, 'a> {
    pub(super) parsed: &'p Parsed<'a>,
    pub(super) caller: Caller,
    pub(super) met: Vec<(Met, usize)>,
    /// Whether all of the template was looked at.
    pub(super) is_complete: bool,
    scopes: Vec<Scope<'a>>,
    /// Scopes of callers, which a macro does not see.
    hidden: Vec<Vec<Scope<'a>>>,
    pub(super) spaces: Vec<HashMap<String, Value>>,
    macros: Vec<Defined<'p, 'a>>,
    journals: Vec<Journal<'a>>,
    /// Which roles each message may have here: of [`Value::Message`].
    roles: Vec<Roles>,
    /// Messages of the loops around, innermost last.
    looped: Vec<usize>,
    /// Names set in a `generation` block, which end with it.
    leaked: HashMap<&'a str, ()>,
    /// What a filter block gives its filter.
    pub(super) block: Value,
    /// The rest of this body does not run.
    ended: bool,
    /// Parts of expressions that may not be evaluated.
    pub(super) inline: usize,
    /// In a branch that conversations rarely take.
    doubt: usize,
    /// In values that only a condition looks at.
    pub(super) unseen: usize,
    /// In branches of which it is not known whether they are taken.
    pub(super) open: usize,
    /// The template reads `varargs` or `kwargs` somewhere.
    argument_lists: bool,
    depth: usize,
    steps: usize,
}

impl<'p, 'a> Walk<'p, 'a> {
    pub(super) fn new(parsed: &'p Parsed<'a>, caller: Caller) -> Self {
        Self {
            parsed,
            caller,
            met: Vec::new(),
            is_complete: true,
            scopes: vec![Scope::default()],
            hidden: Vec::new(),
            spaces: Vec::new(),
            macros: Vec::new(),
            journals: Vec::new(),
            roles: vec![ALL, ALL & !SYSTEM],
            looped: Vec::new(),
            leaked: HashMap::new(),
            block: Value::any_text(),
            ended: false,
            inline: 0,
            doubt: 0,
            open: 0,
            unseen: 0,
            argument_lists: parsed.has_name("varargs") || parsed.has_name("kwargs"),
            depth: 0,
            steps: 0,
        }
    }

    pub(super) fn peer(&self) -> Peer {
        match self.caller {
            Caller::Transformers => Peer::Javascript,
            Caller::Server => Peer::LlamaCpp,
        }
    }

    pub(super) fn run(&mut self) {
        self.statements(&self.parsed.body);
    }

    pub(super) fn meet(&mut self, rule: &'static str, at: usize) {
        if self.doubt == 0 && self.open == 0 {
            let is_unseen = self.unseen > 0 && rules::is_of_text(rule);
            self.met.push((if is_unseen { Met::Unseen(rule) } else { Met::Rule(rule) }, at));
        }
    }

    pub(super) fn lack(&mut self, what: &'static str, name: &str, kind: Kind, at: usize) {
        if self.doubt == 0 && self.open == 0 {
            self.met.push((Met::Missing(what, name.to_owned(), kind), at));
        }
    }

    /// Goes one level deeper, unless that is too deep or too long.
    pub(super) fn enter(&mut self) -> bool {
        self.steps += 1;
        if self.depth >= MAX_DEPTH || self.steps > MAX_STEPS {
            self.is_complete = false;
            return false;
        }
        self.depth += 1;
        true
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Something that conversations rarely come to.
    pub(super) fn rarely<T>(&mut self, walk: impl FnOnce(&mut Self) -> T) -> T {
        self.doubt += 1;
        let result = walk(self);
        self.doubt -= 1;
        result
    }

    pub(super) fn end(&mut self) {
        if self.inline == 0 {
            self.ended = true;
        }
    }

    // Names.

    /// The value of a name, as the reference has it.
    pub(super) fn lookup(&mut self, name: &'a str, at: usize) -> Value {
        let mut found = None;
        let (mut open, doubt) = (Vec::new(), self.doubt + self.open > 0);
        for (i, scope) in self.scopes.iter().enumerate().rev() {
            let slot = scope.names.get(name);
            if found.is_none() {
                found = slot.map(|slot| slot.value.clone());
            }
            if slot.is_some_and(|slot| slot.is_sure) {
                break;
            }
            if scope.turns.is_some() {
                open.push(i);
            }
        }
        let value = found.or_else(|| self.given(name));
        if value.is_none() {
            if self.hidden.iter().flatten().any(|scope| scope.names.contains_key(name)) {
                self.meet("macro-caller-scope", at);
            }
            if self.leaked.contains_key(name) {
                self.meet("generation-scope", at);
            }
        }
        let value = value.unwrap_or(Value::Undefined);
        for i in open.into_iter().filter(|_| !doubt) {
            if let Some(turns) = &mut self.scopes[i].turns {
                turns.reads.push((name, at, value.clone()));
            }
        }
        value
    }

    /// What callers give a template, and what the engine has.
    fn given(&self, name: &str) -> Option<Value> {
        let is_server = self.caller == Caller::Server;
        Some(match name {
            "messages" => Value::list_of(Value::Message(0), Shape::List, 3),
            "add_generation_prompt" => Value::Bool(Truth::Both),
            "bos_token" | "eos_token" => Value::any_text(),
            "tools" | "documents" if !is_server => Value::None,
            "enable_thinking" if is_server => Value::Bool(Truth::Yes),
            "range" => Value::Function("range"),
            "dict" => Value::Function("dict"),
            "namespace" => Value::Function("namespace"),
            "raise_exception" => Value::Function("raise_exception"),
            "strftime_now" => Value::Function("strftime_now"),
            "lipsum" => Value::Function("lipsum"),
            "cycler" => Value::Function("cycler"),
            "joiner" => Value::Function("joiner"),
            _ => return None,
        })
    }

    fn assign(&mut self, name: &'a str, value: Value) {
        let top = self.scopes.len() - 1;
        self.leaked.remove(name);
        if let Some(turns) = self.scopes[top].turns.as_mut().filter(|_| self.open == 0) {
            let joined = turns.sets.get(name).map_or(value.clone(), |old| old.join(&value));
            turns.sets.insert(name, joined);
        }
        self.put(top, name, Slot { value, is_sure: true });
    }

    /// Puts a value in its place and remembers what was there.
    fn put(&mut self, scope: usize, name: &'a str, slot: Slot) {
        let old = self.scopes[scope].names.insert(name, slot);
        if let Some(journal) = self.journals.last_mut() {
            journal.push((scope, name, old));
        }
    }

    fn set_target(&mut self, target: &Target<'a>, value: Value) {
        match target {
            Target::Name(name) => self.assign(name, value),
            Target::Attribute(space, name, at) => {
                let object = self.lookup(space, *at);
                self.set_attribute(object, name, value, *at);
            }
            Target::Several(targets, at) => {
                if targets.iter().any(|target| matches!(target, Target::Several(..))) {
                    self.meet("nested-target", *at);
                }
                let parts = match &value {
                    Value::List(list) => list.items.clone(),
                    _ => None,
                };
                for (i, target) in targets.iter().enumerate() {
                    let item = parts.as_ref().and_then(|parts| parts.get(i).cloned());
                    let item = item.or_else(|| value.items().map(|(item, _)| item)).unwrap_or(Value::Unknown);
                    self.set_target(target, item);
                }
                if matches!(value.kind(), Kind::None) {
                    self.meet("loop-over-none", *at);
                }
            }
        }
    }

    fn set_attribute(&mut self, object: Value, name: &'a str, value: Value, at: usize) {
        match object {
            Value::Space(i) => {
                if name.starts_with('_') {
                    self.meet("private-attribute", at);
                }
                let sure = self.journals.is_empty() && self.scopes.iter().all(|scope| scope.turns.is_none());
                let old = self.spaces[i].get(name).filter(|_| !sure);
                let value = old.map_or(value.clone(), |old| old.join(&value));
                self.spaces[i].insert(name.to_owned(), value);
            }
            Value::Dict(_) | Value::Message(_) | Value::AnyDict => self.meet("set-attribute", at),
            _ => {}
        }
    }

    // Statements.

    fn statements(&mut self, body: &'p [Statement<'a>]) {
        if !self.enter() {
            return;
        }
        for statement in body {
            if self.ended || !self.enter() {
                break;
            }
            self.statement(statement);
            self.leave();
        }
        self.leave();
    }

    fn statement(&mut self, statement: &'p Statement<'a>) {
        match statement {
            Statement::Data(data) => self.data(data),
            Statement::Print(id) => {
                let value = self.eval(*id);
                self.print(&value, self.parsed.at(*id));
                self.printed();
            }
            Statement::For { target, of, only, body, other } => self.for_loop(target, *of, *only, body, other),
            Statement::If { branches, other } => self.condition(branches, other),
            Statement::Set(target, id) => {
                let value = self.eval(*id);
                self.set_target(target, value);
            }
            Statement::SetBlock { target, filter, body, at } => {
                self.captured(body);
                if let Some(filter) = filter {
                    self.meet("set-block-filter", *at);
                    self.eval(*filter);
                }
                self.set_target(target, Value::any_text());
            }
            Statement::Macro { name, macro_ } => {
                let sees = self.scopes.len();
                let mut attributes = Vec::new();
                assigned_attributes(&macro_.body, &mut attributes);
                self.macros.push(Defined { body: macro_, sees, attributes, calls: 0, is_running: false });
                self.assign(name, Value::Macro(self.macros.len() - 1));
            }
            Statement::Call { call, body } => self.call_block(*call, body),
            Statement::Filter { filter, body } => {
                self.captured(body);
                self.eval(*filter);
                self.printed();
            }
            Statement::Generation(body) => self.generation(body),
            Statement::With(values, body) => {
                self.scopes.push(Scope::default());
                for (target, id) in values {
                    let value = self.eval(*id);
                    self.set_target(target, value);
                }
                self.statements(body);
                self.scopes.pop();
            }
            Statement::Scope(body) => self.scoped(body),
            Statement::Leave(at) => self.leave_loop(*at),
        }
    }

    fn scoped(&mut self, body: &'p [Statement<'a>]) {
        self.scopes.push(Scope::default());
        self.statements(body);
        self.scopes.pop();
    }

    fn generation(&mut self, body: &'p [Statement<'a>]) {
        self.scopes.push(Scope::default());
        self.statements(body);
        let names = self.scopes.pop().map(|scope| scope.names).unwrap_or_default();
        self.leaked.extend(names.into_keys().map(|name| (name, ())));
    }

    fn data(&mut self, data: &super::source::Data<'_>) {
        if data.is_lone_first {
            self.meet("first-character", data.at);
        }
        if data.lost_wide_space {
            self.meet("wide-space", data.at);
        }
        if let Some(i) = data.carriage_return {
            self.meet("carriage-return", i);
        }
        if !data.text.is_empty() {
            self.printed();
        }
    }

    fn turns(&mut self) -> Option<&mut Turns<'a>> {
        self.scopes.iter_mut().rev().find_map(|scope| scope.turns.as_mut())
    }

    fn printed(&mut self) {
        if let Some(turns) = self.turns() {
            turns.printed = true;
            turns.printed_in_if |= turns.ifs > 0;
        }
    }

    fn leave_loop(&mut self, at: usize) {
        let Some(turns) = self.turns() else { return };
        match (turns.printed_in_if, turns.printed) {
            (true, _) => self.meet("output-before-leaving-if", at),
            (false, true) => self.meet("output-before-leaving", at),
            _ => {}
        }
        self.ended = true;
    }

    /// A body whose text goes somewhere else than into the prompt.
    fn captured(&mut self, body: &'p [Statement<'a>]) {
        let before = self.turns().map(|turns| (turns.printed, turns.printed_in_if));
        self.scoped(body);
        if let (Some((printed, in_if)), Some(turns)) = (before, self.turns()) {
            (turns.printed, turns.printed_in_if) = (printed, in_if);
        }
    }

    fn for_loop(
        &mut self,
        target: &Target<'a>,
        of: Id,
        only: Option<Id>,
        body: &'p [Statement<'a>],
        other: &'p [Statement<'a>],
    ) {
        let value = self.eval(of);
        let at = self.parsed.at(of);
        match value.kind() {
            Kind::None => self.meet("loop-over-none", at),
            Kind::Bool | Kind::Int | Kind::Float => self.meet("loop-over-number", at),
            Kind::Undefined => self.meet("loop-over-undefined", at),
            Kind::Text => self.meet("loop-over-text", at),
            _ => {}
        }
        let Some((item, count)) = value.items() else { return };
        let is_empty = count == Some(0) && value.truth() == Truth::No;
        if !is_empty {
            if matches!((target, &item), (Target::Several(..), Value::List(list)) if list.shape == Shape::Tuple) {
                self.meet("unpack-tuple", at);
            }
            self.turn(target, item, count.unwrap_or(0), only, body);
        }
        if is_empty {
            self.scoped(other);
        } else if count.is_none_or(|count| count == 0) {
            self.rarely(|walk| walk.scoped(other));
        }
    }

    /// Forgets what attributes of namespaces are, but for their types.
    fn widen(&mut self, attributes: &[&str]) {
        for name in attributes {
            for space in &mut self.spaces {
                if let Some(value) = space.get_mut(*name) {
                    *value = value.widened();
                }
            }
        }
    }

    /// The body of a loop, once for all turns.
    fn turn(&mut self, target: &Target<'a>, item: Value, count: usize, only: Option<Id>, body: &'p [Statement<'a>]) {
        let mut attributes = Vec::new();
        assigned_attributes(body, &mut attributes);
        self.widen(&attributes);
        let is_of_messages = matches!(item, Value::Message(_));
        let turns = Turns { again: count >= 2, is_of_messages, ..Turns::default() };
        self.scopes.push(Scope { turns: Some(turns), ..Scope::default() });
        let item = match item {
            Value::Message(of) => self.message_of_turn(of),
            item => item,
        };
        self.set_target(target, item);
        self.assign("loop", Value::Loop);
        if let Some(turns) = self.turns() {
            turns.sets.clear();
        }
        let truth = only.map_or(Truth::Yes, |only| self.truth(only));
        if truth.can_be(true) {
            if let Some(only) = only {
                self.refine(only);
            }
            self.statements(body);
        }
        self.ended = false;
        if is_of_messages {
            self.looped.pop();
        }
        let Some(turns) = self.scopes.pop().and_then(|scope| scope.turns) else { return };
        if turns.again {
            let leaks =
                turns.reads.iter().filter(|(name, _, was)| turns.sets.get(name).is_some_and(|set| differs(was, set)));
            let places: Vec<usize> = leaks.map(|(_, at, _)| *at).collect();
            places.into_iter().for_each(|at| self.meet("set-in-loop", at));
        }
    }

    /// Whether the loop's message is a system message, which is the first.
    pub(super) fn is_first_turn(&self) -> bool {
        let turns = self.scopes.iter().rev().find_map(|scope| scope.turns.as_ref());
        turns.is_some_and(|turns| turns.is_of_messages) && self.looped.last().is_some_and(|i| self.roles[*i] == SYSTEM)
    }

    fn message_of_turn(&mut self, of: usize) -> Value {
        self.roles.push(if of == AFTER_FIRST { self.roles[AFTER_FIRST] } else { ALL });
        self.looped.push(self.roles.len() - 1);
        Value::Message(self.roles.len() - 1)
    }

    /// Whether a message's role is this one.
    pub(super) fn role_is(&self, i: usize, role: &str) -> Truth {
        let bit = match role {
            "user" => 1,
            "assistant" => 2,
            "system" => SYSTEM,
            _ => return Truth::No,
        };
        match self.roles[i] {
            roles if roles & bit == 0 => Truth::No,
            roles if roles == bit => Truth::Yes,
            _ => Truth::Both,
        }
    }

    /// The roles of the innermost loop's message with which a condition may hold, and with which
    /// not.
    fn roles_of(&mut self, test: Id) -> Option<(usize, Roles, Roles)> {
        let i = *self.looped.last()?;
        let all = self.roles[i];
        let (mut with, mut without) = (0, 0);
        for bit in [1, 2, 4].into_iter().filter(|bit| all & bit != 0) {
            self.roles[i] = bit;
            let truth = self.rarely(|walk| walk.truth(test));
            with |= if truth.can_be(true) { bit } else { 0 };
            without |= if truth.can_be(false) { bit } else { 0 };
        }
        self.roles[i] = all;
        Some((i, with, without))
    }

    fn refine(&mut self, test: Id) {
        if let Some((i, with, _)) = self.roles_of(test).filter(|(_, with, _)| *with != 0) {
            self.roles[i] = with;
        }
    }

    fn condition(&mut self, branches: &'p [(Id, Vec<Statement<'a>>)], other: &'p [Statement<'a>]) {
        let message = self.looped.last().map(|i| (*i, self.roles[*i]));
        let gone = self.branches(branches, other);
        if let Some((i, roles)) = message {
            self.roles[i] = roles & !gone;
            self.ended |= self.roles[i] == 0;
        }
    }

    /// The roles that do not come to the end of this.
    fn branches(&mut self, branches: &'p [(Id, Vec<Statement<'a>>)], other: &'p [Statement<'a>]) -> Roles {
        let mut gone = 0;
        let mut changes = Vec::new();
        let before = self.turns().map(|turns| (turns.printed, turns.printed_in_if));
        let mut printed = before;
        let mut falls_through = true;
        let mut is_first = true;
        for (test, body) in branches {
            let roles = self.roles_of(*test);
            let mut truth = self.truth(*test);
            if let Some((_, with, without)) = roles {
                truth = match (with, without) {
                    (0, _) => Truth::No,
                    (_, 0) => Truth::Yes,
                    _ => truth,
                };
            }
            if truth == Truth::No {
                continue;
            }
            if let Some((i, with, _)) = roles {
                self.roles[i] = with;
            }
            if truth == Truth::Yes {
                falls_through = false;
                if is_first {
                    self.inside_if(body);
                    return 0;
                }
            }
            is_first = false;
            let is_open = usize::from(truth == Truth::Open);
            self.open += is_open;
            let change = self.branch(body, before, &mut printed);
            self.open -= is_open;
            if let (None, Some((_, with, without))) = (&change, roles) {
                gone |= with & !without;
            }
            changes.extend(change);
            if !falls_through {
                break;
            }
            if let Some((i, _, without)) = roles {
                self.roles[i] = without;
            }
        }
        if falls_through {
            if is_first {
                self.inside_if(other);
                return 0;
            }
            changes.extend(self.branch(other, before, &mut printed));
        }
        if let (Some((all, in_if)), Some(turns)) = (printed, self.turns()) {
            (turns.printed, turns.printed_in_if) = (all, in_if && turns.ifs > 0);
        }
        self.ended = changes.is_empty();
        self.merge(changes);
        gone
    }

    fn inside_if(&mut self, body: &'p [Statement<'a>]) {
        if let Some(turns) = self.turns() {
            turns.ifs += 1;
        }
        self.statements(body);
        if let Some(turns) = self.turns() {
            turns.ifs -= 1;
            turns.printed_in_if &= turns.ifs > 0;
        }
    }

    /// One of several branches: what it changes, taken back; nothing if it does not come to its
    /// end.
    fn branch(
        &mut self,
        body: &'p [Statement<'a>],
        before: Option<(bool, bool)>,
        printed: &mut Option<(bool, bool)>,
    ) -> Option<HashMap<(usize, &'a str), Slot>> {
        self.journals.push(Vec::new());
        self.inside_if(body);
        let journal = self.journals.pop().unwrap_or_default();
        let mut changes = HashMap::new();
        // Scopes that the branch itself opened are closed again.
        let kept = self.scopes.len();
        for (scope, name, old) in journal.into_iter().rev().filter(|(scope, ..)| *scope < kept) {
            let slot = match old {
                Some(old) => self.scopes[scope].names.insert(name, old),
                None => self.scopes[scope].names.remove(name),
            };
            if let Some(slot) = slot {
                changes.entry((scope, name)).or_insert(slot);
            }
        }
        let ended = std::mem::take(&mut self.ended);
        if let (Some(before), Some(turns)) = (before, self.turns()) {
            if let Some(printed) = printed.as_mut().filter(|_| !ended) {
                *printed = (printed.0 | turns.printed, printed.1 | turns.printed_in_if);
            }
            (turns.printed, turns.printed_in_if) = before;
        }
        (!ended).then_some(changes)
    }

    /// What holds after branches, of which any may have been taken.
    fn merge(&mut self, changes: Vec<HashMap<(usize, &'a str), Slot>>) {
        let mut keys: Vec<(usize, &'a str)> = changes.iter().flat_map(|c| c.keys().copied()).collect();
        keys.sort_unstable();
        keys.dedup();
        for (scope, name) in keys {
            let outside = || {
                let of = |scope: &Scope<'a>| scope.names.get(name).map(|slot| slot.value.clone());
                self.scopes[..=scope].iter().rev().find_map(of).or_else(|| self.given(name)).unwrap_or(Value::Undefined)
            };
            let was = self.scopes[scope].names.get(name).cloned();
            let was = was.unwrap_or_else(|| Slot { value: outside(), is_sure: false });
            let slots = changes.iter().map(|change| change.get(&(scope, name)).unwrap_or(&was).clone());
            let joined = slots.reduce(|a, b| Slot { value: a.value.join(&b.value), is_sure: a.is_sure && b.is_sure });
            if let Some(joined) = joined {
                self.put(scope, name, joined);
            }
        }
    }

    // Macros.

    fn call_block(&mut self, call: Id, body: &'p Macro<'a>) {
        self.scopes.push(Scope::default());
        for (name, _) in &body.params {
            self.assign(name, Value::Unknown);
        }
        self.captured(&body.body);
        self.scopes.pop();
        self.scopes.push(Scope::default());
        self.assign("caller", Value::Function("caller"));
        self.eval(call);
        self.scopes.pop();
        self.printed();
    }

    /// Binds arguments as jinja2 does, says where llama.cpp binds others, and walks the body.
    pub(super) fn call_macro(
        &mut self,
        i: usize,
        values: Vec<Value>,
        keywords: Vec<(&'a str, Value)>,
        at: usize,
    ) -> Value {
        let params = &self.macros[i].body.params;
        if values.len() + keywords.len() > params.len() && !self.argument_lists {
            self.meet("macro-extra-argument", at);
        }
        let count = values.len() + keywords.len();
        let (mut bound, mut gap) = (Vec::new(), false);
        for (place, (name, default)) in self.macros[i].body.params.iter().enumerate() {
            let keyword = keywords.iter().find(|(keyword, _)| keyword == name).map(|(_, value)| value.clone());
            let given = values.get(place).cloned().or(keyword.clone());
            let theirs_is_default = place >= count;
            let theirs = if theirs_is_default { None } else { keyword.or_else(|| values.get(place).cloned()) };
            match (&given, default) {
                (None, None) if theirs_is_default => self.meet("macro-missing-argument", at),
                (Some(_), None) if theirs_is_default => self.meet("macro-missing-argument", at),
                (Some(_), Some(_)) if theirs_is_default => gap |= self.parsed.prints(self.macros[i].body, name),
                (None, Some(_)) if !theirs_is_default && theirs.is_none() => {
                    gap |= self.parsed.prints(self.macros[i].body, name);
                }
                _ => {}
            }
            bound.push((*name, given, *default));
        }
        if gap {
            self.meet("macro-keyword-gap", at);
        }
        self.run_macro(i, bound);
        Value::any_text()
    }

    fn run_macro(&mut self, i: usize, bound: Vec<(&'a str, Option<Value>, Option<Id>)>) {
        let defined = &mut self.macros[i];
        if defined.is_running || defined.calls >= MAX_CALLS {
            let attributes = std::mem::take(&mut self.macros[i].attributes);
            self.widen(&attributes);
            self.macros[i].attributes = attributes;
            return;
        }
        defined.calls += 1;
        defined.is_running = true;
        let (sees, body) = (defined.sees.min(self.scopes.len()), defined.body);
        let caller =
            self.scopes.iter().rev().find_map(|scope| scope.names.get("caller")).map(|slot| slot.value.clone());
        let rest = self.scopes.split_off(sees);
        self.hidden.push(rest);
        let journals = std::mem::take(&mut self.journals);
        self.journals.push(Vec::new());
        let (ended, inline) = (std::mem::take(&mut self.ended), std::mem::take(&mut self.inline));
        let unseen = std::mem::take(&mut self.unseen);
        self.scopes.push(Scope::default());
        let names: Vec<&str> = bound.iter().map(|(name, ..)| *name).collect();
        for (name, value, default) in bound {
            let value = match (value, default) {
                (Some(value), _) => value,
                (None, Some(default)) => {
                    if self.reads_any(default, &names) {
                        self.meet("macro-default-of-parameter", self.parsed.at(default));
                    }
                    self.eval(default)
                }
                (None, None) => Value::Undefined,
            };
            self.assign(name, value);
        }
        if let Some(caller) = caller {
            self.assign("caller", caller);
        }
        self.statements(&body.body);
        self.scopes.pop();
        (self.ended, self.inline, self.unseen) = (ended, inline, unseen);
        self.journals = journals;
        if let Some(rest) = self.hidden.pop() {
            self.scopes.extend(rest);
        }
        self.macros[i].is_running = false;
    }

    fn reads_any(&self, id: Id, names: &[&str]) -> bool {
        matches!(self.parsed.expr(id), super::syntax::Expr::Name(name) if names.contains(name))
    }

    /// In a macro's body: `varargs` and `kwargs` are its own.
    pub(super) fn is_in_macro(&self) -> bool {
        !self.hidden.is_empty()
    }

    pub(super) fn space(&mut self, entries: HashMap<String, Value>) -> Value {
        self.spaces.push(entries);
        Value::Space(self.spaces.len() - 1)
    }
}

/// Whether a name may be another value in the next turn than the reference has.
fn differs(was: &Value, set: &Value) -> bool {
    let is_open = matches!(was, Value::Text(_) | Value::Int(None) | Value::Characters | Value::List(_))
        && was.known_text().is_none();
    let are_empty = *was == Value::Undefined && set.truth() == Truth::No;
    (was != set || is_open) && !are_empty
}

/// Attributes of namespaces that statements set.
fn assigned_attributes<'a>(body: &[Statement<'a>], out: &mut Vec<&'a str>) {
    for statement in body {
        match statement {
            Statement::Set(target, _) => target_of(target, out),
            Statement::SetBlock { target, body, .. } => {
                target_of(target, out);
                assigned_attributes(body, out);
            }
            Statement::For { body, other, .. } => {
                assigned_attributes(body, out);
                assigned_attributes(other, out);
            }
            Statement::If { branches, other } => {
                branches.iter().for_each(|(_, body)| assigned_attributes(body, out));
                assigned_attributes(other, out);
            }
            Statement::Macro { macro_, .. } => assigned_attributes(&macro_.body, out),
            Statement::Call { body, .. } => assigned_attributes(&body.body, out),
            Statement::Filter { body, .. }
            | Statement::Generation(body)
            | Statement::With(_, body)
            | Statement::Scope(body) => assigned_attributes(body, out),
            _ => {}
        }
    }
}

fn target_of<'a>(target: &Target<'a>, out: &mut Vec<&'a str>) {
    match target {
        Target::Attribute(_, name, _) => out.push(name),
        Target::Several(targets, _) => targets.iter().for_each(|t| target_of(t, out)),
        Target::Name(_) => {}
    }
}
