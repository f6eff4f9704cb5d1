//! What a merge is made of: on the command line, in a recipe file, or both.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::imatrix_args::ImatrixArgs;
use super::loss_args::LossArgs;
use super::types::TypeArgs;
use super::{Global, Usage, output};
use crate::gguf::{Limits, Model};
use crate::patch::{self, Patch};
use crate::plan::{self, MAX_RECIPE_BYTES, Masks, PRESETS, RECIPE_KEY, Recipe, RecipeFile, VectorFile};
use crate::vector::{Inputs, Method, Role, SourceId, Vector};

/// How vectors are combined, and which parts of a model take part.
#[derive(Args, Clone, Debug)]
pub(super) struct RecipeArgs {
    /// Which rows of token embeddings and output take part [default: auto]
    #[arg(long, value_name = "WHICH", value_enum)]
    embeddings: Option<Embeddings>,
    /// Tokens whose rows are taken from the chat model as they are: auto, none, or their texts with
    /// commas between [default: auto]
    #[arg(long, value_name = "auto|none|TOKENS")]
    special_tokens: Option<String>,
    /// Give the model the tokens that the chat needs and it lacks, with the chat model's rows
    #[arg(long)]
    add_missing_tokens: bool,
    #[command(flatten, next_help_heading = "How much of the vectors, and how")]
    how: HowArgs,
}

#[derive(Args, Clone, Debug)]
struct HowArgs {
    /// Multiply ratios by R in tensors whose name has a match, which may count layers from the end
    /// (blk.-1.); can be given several times, the first match counts
    #[arg(long, value_name = "REGEX=R")]
    ratio_for: Vec<String>,
    /// Multiply ratios by these numbers, spread over the layers and interpolated between, such as
    /// 0,0.5,1,1,0.5; tensors in no layer have the first one
    #[arg(long, value_name = "R,R…", value_delimiter = ',', allow_negative_numbers = true)]
    ratio_gradient: Vec<f64>,
    /// Multiply ratios as a preset says, see below; can be given several times
    #[arg(long, value_name = "NAME")]
    preset: Vec<String>,
    /// How vectors are combined, as mergekit does: task_arithmetic (or sum), linear, ties,
    /// dare_linear or dare_ties [default: task_arithmetic]
    #[arg(long, value_name = "METHOD", value_parser = method)]
    method: Option<Method>,
    /// With ties and dare: the share of each vector's weights that is selected
    #[arg(long, value_name = "SHARE")]
    density: Option<f64>,
    /// Multiply what is added by this
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    lambda: Option<f64>,
    /// Whether to divide by the sum of ratios [default: with linear and ties]
    #[arg(long, value_name = "BOOL")]
    normalize: Option<bool>,
    /// Whether to scale selected weights up to the magnitude of all [default: with dare]
    #[arg(long, value_name = "BOOL")]
    rescale: Option<bool>,
    /// With dare: which weights are drawn [default: 0]
    #[arg(long, value_name = "N")]
    dare_seed: Option<u64>,
    /// With dare: a GGUF file of I8 tensors VECTOR:TENSOR, vectors counted from 0, that says which
    /// weights are drawn
    #[arg(long, value_name = "FILE", hide = true)]
    masks: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum, Debug)]
enum Embeddings {
    /// all if base and chat have every token of the model, else shared
    Auto,
    /// Every row; refused if a token is missing somewhere
    All,
    /// Rows of the tokens that base and chat have too
    Shared,
    /// They stay the model's
    Skip,
}

fn method(text: &str) -> Result<Method, String> {
    let known = Method::ALL.into_iter().find(|method| method.name() == text);
    known.or((text == "sum").then_some(Method::TaskArithmetic)).ok_or_else(|| {
        let names = Method::ALL.map(Method::name).join(", ");
        format!("known are sum, {names}")
    })
}

/// The presets as text, for the help.
pub(super) fn presets() -> String {
    let lines = PRESETS.map(|preset| {
        let rules = preset.rules.iter().map(|rule| format!("\n      {rule}")).collect::<String>();
        format!("\n  {}: {}{rules}", preset.name, preset.about)
    });
    "Presets, and the rules they stand for (of each, the first match counts):".to_owned() + &lines.concat()
}

impl RecipeArgs {
    /// Puts the presets that were given in place of the file's, once and for all.
    pub(super) fn move_presets(&mut self, file: &mut RecipeFile) {
        let presets = std::mem::take(&mut self.how.preset);
        if !presets.is_empty() {
            file.preset = presets;
        }
    }

    /// Puts what was given in place of what the file says.
    fn overlay(&self, file: &mut RecipeFile) {
        if let Some(embeddings) = self.embeddings {
            file.embeddings = match embeddings {
                Embeddings::Auto => plan::Embeddings::Auto,
                Embeddings::All => plan::Embeddings::All,
                Embeddings::Shared => plan::Embeddings::Shared,
                Embeddings::Skip => plan::Embeddings::Skip,
            };
        }
        if let Some(tokens) = &self.special_tokens {
            file.special_tokens.clone_from(tokens);
        }
        file.add_missing_tokens |= self.add_missing_tokens;
        let how = &self.how;
        // The first match counts, so these win.
        file.ratio_for.splice(0..0, how.ratio_for.iter().cloned());
        if !how.ratio_gradient.is_empty() {
            file.ratio_gradient.clone_from(&how.ratio_gradient);
        }
        if !how.preset.is_empty() {
            file.preset.clone_from(&how.preset);
        }
        file.method = how.method.unwrap_or(file.method);
        file.seed = how.dare_seed.unwrap_or(file.seed);
        if let Some(density) = how.density {
            file.vectors.iter_mut().for_each(|vector| vector.density = Some(density.into()));
        }
        file.lambda = how.lambda.map(Into::into).or(file.lambda.take());
        file.normalize = how.normalize.map(Into::into).or(file.normalize.take());
        file.rescale = how.rescale.map(Into::into).or(file.rescale.take());
    }

    /// The method that was given.
    pub(super) fn method(&self) -> Option<Method> {
        self.how.method
    }

    /// Reads the masks that stand in for a generator.
    fn masks(&self, limits: &Limits) -> Result<Option<Masks>> {
        let Some(path) = &self.how.masks else { return Ok(None) };
        let model = Model::open(path, limits).context("--masks")?;
        let mut masks = Masks::new();
        for (id, tensor) in model.tensors().enumerate() {
            let (vector, name) = tensor.name().split_once(':').context("--masks: a tensor is called VECTOR:TENSOR")?;
            let mut mask = vec![0; usize::try_from(tensor.size()).context("--masks")?];
            model.read(id, 0, &mut mask).context("--masks")?;
            masks.insert((vector.parse().context("--masks")?, name.to_owned()), mask.into());
        }
        Ok(Some(masks))
    }
}

/// A recipe with everything that was given, ready to be planned.
pub(super) struct Prepared {
    pub(super) inputs: Inputs,
    pub(super) recipe: Recipe,
}

/// Completes a recipe by what was given beside it, and opens its files.
pub(super) fn prepare(
    mut file: RecipeFile,
    how: &RecipeArgs,
    loss: &LossArgs,
    types: &TypeArgs,
    imatrix: &ImatrixArgs,
    is_forced: bool,
    global: &Global,
) -> Result<Prepared> {
    how.overlay(&mut file);
    loss.overlay(&mut file);
    types.overlay(&mut file)?;
    imatrix.overlay(&mut file);
    let mut recipe = file.recipe()?;
    recipe.merging.masks = how.masks(&global.limits())?;
    let inputs = ImatrixArgs::of(&file).add_to(open(&file, is_forced, global)?, global)?;
    Ok(Prepared { inputs, recipe })
}

/// Reads a recipe: TOML of our own, mergekit's YAML, or what an earlier output says of itself.
pub(super) fn read(path: &Path, global: &Global) -> Result<RecipeFile> {
    let named = || format!("--recipe: {}", path.display());
    let folder = path.parent().unwrap_or(Path::new(""));
    let kind = path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
    let text = || -> Result<String> {
        // It may be a pipe, or have no end.
        let mut text = String::new();
        let file = std::fs::File::open(path).with_context(named)?;
        file.take(MAX_RECIPE_BYTES + 1).read_to_string(&mut text).with_context(named)?;
        if text.len() as u64 > MAX_RECIPE_BYTES {
            return Err(plan::Error::RecipeTooLong { limit: MAX_RECIPE_BYTES }).with_context(named);
        }
        Ok(text)
    };
    let file = match kind.as_str() {
        "toml" => RecipeFile::from_toml(&text()?),
        "yml" | "yaml" => RecipeFile::from_mergekit(&text()?),
        "gguf" => {
            let model = Model::open(path, &global.limits()).context("--recipe")?;
            let text = model.metadata().get_str(RECIPE_KEY).map(ToString::to_string);
            let missing = || {
                let text = "there is no recipe (key {RECIPE_KEY}): only what merge or apply made has one";
                Usage(format!("{}: {}", named(), text.replace("{RECIPE_KEY}", RECIPE_KEY)))
            };
            RecipeFile::from_toml(&text.ok_or_else(missing)?)
        }
        _ => bail!("{}: a recipe is a .toml, mergekit's .yml or .yaml, or a .gguf that was made by one", named()),
    };
    Ok(file.with_context(named)?.in_folder(folder))
}

/// Opens a patch, and holds it against its own hashes: one that is damaged is only applied to who
/// is told and goes on.
fn open_patch(path: &Path, is_forced: bool, global: &Global) -> Result<Patch, patch::Error> {
    let limits = global.limits_if(is_forced);
    if !is_forced {
        return patch::open_whole(path, &limits);
    }
    let (patch, checked) = patch::open_checked(path, &limits)?;
    complain_of_damage(path, &checked);
    Ok(patch)
}

/// Says if a patch is not what was written.
pub(super) fn complain_of_damage(path: &Path, checked: &patch::Checked) {
    if let Some(found) = checked.damage() {
        let text = format!("{}: expected the bytes that were written, found {found}", path.display());
        output::complain("warning", &text);
    }
}

/// Opens every file of a recipe once.
pub(super) fn open(file: &RecipeFile, is_forced: bool, global: &Global) -> Result<Inputs> {
    let limits = global.limits();
    let model = |path: &Path| Model::open(path, &limits);
    let mut inputs = Inputs::new(model(&file.model).context("--model")?);
    let mut opened: Vec<(&Path, SourceId)> = vec![(&file.model, 0)];
    for (i, vector) in file.vectors.iter().enumerate() {
        let mut source = |path: &'_ PathBuf, role: Role| -> Result<SourceId> {
            let is_it = |(other, _): &&(&Path, SourceId)| same_file::is_same_file(path, other).unwrap_or(false);
            if let Some((_, id)) = opened.iter().find(is_it) {
                return Ok(*id);
            }
            let named = || match file.vectors.len() {
                1 => format!("--{}", role.name()),
                _ => format!("vector {}: {}", i + 1, role.name()),
            };
            Ok(inputs.add_source(role, model(path).with_context(named)?))
        };
        let (plus, minus) = match (&vector.patch, &vector.chat) {
            (Some(path), _) => (inputs.add_patch(open_patch(path, is_forced, global)?), None),
            (None, Some(chat)) => {
                let minus = vector.base.as_ref().map(|base| source(base, Role::Base)).transpose()?;
                (source(chat, Role::Chat)?, minus)
            }
            (None, None) => bail!("vector {} has no files", i + 1),
        };
        for (path, id) in [(&vector.base, minus), (&vector.chat, Some(plus))] {
            if let (Some(path), Some(id)) = (path, id) {
                opened.push((path, id));
            }
        }
        inputs.add_vector(Vector { ratio: vector.plain_ratio(), plus, minus });
    }
    Ok(inputs)
}

/// A vector in one word: `BASE:CHAT` or `PATCH`, with `@RATIO` behind it unless the ratio is 1. In
/// a linear merge a single file is a model.
///
/// The ratio is behind the last `@`, unless a file is called so. Base and chat are parted where
/// both parts are files, else at the last colon that does not belong to a drive.
///
/// # Errors
/// [`plan::Error::RatioText`], [`plan::Error::VectorText`].
pub(super) fn parse_vector(arg: &Path) -> Result<VectorFile, plan::Error> {
    let Some(text) = arg.to_str() else { return Ok(VectorFile::patch(arg.to_owned(), 1.0)) };
    if let Some(vector) = existing(text, 1.0) {
        return Ok(vector);
    }
    let (text, ratio) = match text.rsplit_once('@') {
        Some((before, ratio)) => match ratio.parse() {
            Ok(ratio) => (before, ratio),
            Err(_) if existing(before, 1.0).is_some() => {
                return Err(plan::Error::RatioText { text: ratio.to_owned() });
            }
            Err(_) => (text, 1.0),
        },
        None => (text, 1.0),
    };
    if let Some(vector) = existing(text, ratio) {
        return Ok(vector);
    }
    let colon = colons(text).next_back();
    match colon.map(|at| (&text[..at], &text[at + 1..])) {
        None => Ok(VectorFile::patch(text.into(), ratio)),
        Some((base, chat)) if base.is_empty() || chat.is_empty() => Err(plan::Error::VectorText {
            text: text.to_owned(),
            reason: "there is nothing on one side of the colon".to_owned(),
        }),
        Some((base, chat)) => Ok(VectorFile::pair(base.into(), chat.into(), ratio)),
    }
}

/// A file with `@RATIO` behind it unless the ratio is 1. The ratio is behind the last `@`, unless a
/// file is called so.
///
/// # Errors
/// [`plan::Error::RatioText`].
pub(super) fn parse_ratio(arg: &Path) -> Result<(PathBuf, f64), plan::Error> {
    let parts = arg.to_str().filter(|_| !arg.is_file()).and_then(|text| text.rsplit_once('@'));
    match parts.map(|(path, ratio)| (path, ratio, ratio.parse())) {
        Some((path, _, Ok(ratio))) => Ok((path.into(), ratio)),
        Some((path, ratio, Err(_))) if Path::new(path).is_file() => {
            Err(plan::Error::RatioText { text: ratio.to_owned() })
        }
        _ => Ok((arg.to_owned(), 1.0)),
    }
}

/// The vector whose files are there.
fn existing(text: &str, ratio: f64) -> Option<VectorFile> {
    let is_file = |text: &str| Path::new(text).is_file();
    if is_file(text) {
        return Some(VectorFile::patch(text.into(), ratio));
    }
    let parts = colons(text).map(|at| (&text[..at], &text[at + 1..]));
    let (base, chat) = parts.into_iter().find(|(base, chat)| is_file(base) && is_file(chat))?;
    Some(VectorFile::pair(base.into(), chat.into(), ratio))
}

/// Where base and chat may part: not behind the letter of a drive.
fn colons(text: &str) -> impl DoubleEndedIterator<Item = usize> {
    let is_drive = |at: usize| {
        let (before, after) = (&text[..at], &text[at + 1..]);
        let letter = before.rsplit(':').next().unwrap_or_default();
        letter.len() == 1 && letter.as_bytes()[0].is_ascii_alphabetic() && after.starts_with(['\\', '/'])
    };
    text.match_indices(':').map(|(at, _)| at).filter(move |at| !is_drive(*at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arg: &str) -> VectorFile {
        parse_vector(Path::new(arg)).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn a_ratio_stands_behind_the_last_at() {
        assert_eq!(parse("no/such@dir/p.gguf@0.5"), VectorFile::patch("no/such@dir/p.gguf".into(), 0.5));
        assert_eq!(parse("no/such/p.gguf@-1"), VectorFile::patch("no/such/p.gguf".into(), -1.0));
        assert_eq!(parse("no/such@dir/p.gguf"), VectorFile::patch("no/such@dir/p.gguf".into(), 1.0));
        let e = parse_vector(Path::new("Cargo.toml@half"));
        assert!(matches!(e, Err(plan::Error::RatioText { .. })));
    }

    #[test]
    fn base_and_chat_part_where_both_are_files_else_at_the_last_colon_that_is_no_drives() {
        let pair = |base: &str, chat: &str, ratio| VectorFile::pair(base.into(), chat.into(), ratio);
        assert_eq!(parse("Cargo.toml:Cargo.lock@2"), pair("Cargo.toml", "Cargo.lock", 2.0));
        assert_eq!(parse("a:b:c"), pair("a:b", "c", 1.0));
        assert_eq!(parse(r"C:\b.gguf:D:\c.gguf@0.5"), pair(r"C:\b.gguf", r"D:\c.gguf", 0.5));
        assert_eq!(parse(r"C:\p.gguf"), VectorFile::patch(r"C:\p.gguf".into(), 1.0));
        assert!(matches!(parse_vector(Path::new(":x")), Err(plan::Error::VectorText { .. })));
    }
}
