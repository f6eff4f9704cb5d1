//! The types of an output, asked for in llama-quantize's words.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use super::output::complain;
use crate::ggml::GgmlType;
use crate::plan::mixture::{Options, Override};
use crate::plan::{self, OutputType, RecipeFile};
use crate::quants;

/// What the help calls these options.
pub(super) const HEADING: &str = "Types, as in llama-quantize";

/// The types of a model that something is added to.
#[derive(Args, Clone, Debug)]
pub(super) struct TypeArgs {
    /// keep (the model's own type for every tensor), or a file type of llama-quantize, such as F16,
    /// Q8_0 or Q4_K_M [default: keep]
    #[arg(short = 't', long = "type", value_name = "TYPE")]
    name: Option<String>,
    #[command(flatten, next_help_heading = HEADING)]
    mixture: MixtureArgs,
}

/// What can be asked for besides a file type.
#[derive(Args, Clone, Debug)]
pub(super) struct MixtureArgs {
    /// One type for every tensor, no mixture
    #[arg(long)]
    pure: bool,
    /// Another type for tensors whose name has a match; can be given several times, the first match
    /// counts
    #[arg(long, value_name = "REGEX=TYPE")]
    tensor_type: Vec<String>,
    /// A file of such REGEX=TYPE, which come after those given one by one
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Option<PathBuf>,
    /// The type of output.weight, or of token embeddings that are the output too
    #[arg(long, value_name = "TYPE")]
    output_tensor_type: Option<String>,
    /// The type of the token embeddings
    #[arg(long, value_name = "TYPE")]
    token_embedding_type: Option<String>,
    /// Leave output.weight as it is
    #[arg(long)]
    leave_output_tensor: bool,
}

impl TypeArgs {
    /// Puts what was given in place of what a recipe says. Another type comes without the options
    /// of the recipe's.
    pub(super) fn overlay(&self, file: &mut RecipeFile) -> Result<()> {
        if let Some(name) = &self.name {
            let RecipeFile { ty, pure, tensor_type, output_tensor_type, token_embedding_type, .. } = file;
            ty.clone_from(name);
            (*pure, file.leave_output_tensor) = (false, false);
            tensor_type.clear();
            (*output_tensor_type, *token_embedding_type) = (None, None);
        }
        let given = &self.mixture;
        file.pure |= given.pure;
        file.leave_output_tensor |= given.leave_output_tensor;
        let mut overrides = given.tensor_type.clone();
        if let Some(path) = &given.tensor_type_file {
            overrides.extend(tensor_types(path)?.iter().map(ToString::to_string));
        }
        file.tensor_type.splice(0..0, overrides);
        file.output_tensor_type = given.output_tensor_type.clone().or(file.output_tensor_type.take());
        file.token_embedding_type = given.token_embedding_type.clone().or(file.token_embedding_type.take());
        // The same as the plan will read, with the names of options in what is wrong.
        let all = MixtureArgs {
            pure: file.pure,
            tensor_type: file.tensor_type.clone(),
            tensor_type_file: None,
            output_tensor_type: file.output_tensor_type.clone(),
            token_embedding_type: file.token_embedding_type.clone(),
            leave_output_tensor: file.leave_output_tensor,
        };
        all.output(&file.ty).map(drop)
    }
}

/// Reads a file of REGEX=TYPE.
fn tensor_types(path: &Path) -> Result<Vec<Override>> {
    let named = || format!("--tensor-type-file: {}", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    Override::parse_list(&text).with_context(named)
}

impl MixtureArgs {
    /// The types of a file of this type.
    pub(super) fn output(&self, name: &str) -> Result<OutputType> {
        let mut overrides: Vec<Override> = self
            .tensor_type
            .iter()
            .map(|text| Override::parse(text))
            .collect::<Result<_, _>>()
            .context("--tensor-type")?;
        if let Some(path) = &self.tensor_type_file {
            overrides.extend(tensor_types(path)?);
        }
        let options = Options {
            pure: self.pure,
            leave_output: self.leave_output_tensor,
            output: parse(self.output_tensor_type.as_deref(), "--output-tensor-type")?,
            embeddings: parse(self.token_embedding_type.as_deref(), "--token-embedding-type")?,
            overrides,
        };
        let output = OutputType::new(name, options).context("--type")?;
        if let OutputType::Mixture { file_type, options } = &output
            && !file_type.default_type.is_quantized()
            && !options.overrides.is_empty()
        {
            complain(
                "warning",
                &format!("as in llama-quantize, --tensor-type changes nothing with {}", file_type.name),
            );
        }
        Ok(output)
    }
}

/// A ggml type by name.
fn parse(name: Option<&str>, option: &str) -> Result<Option<GgmlType>> {
    let parsed = name.map(str::parse).transpose().map_err(plan::Error::from);
    parsed.with_context(|| {
        let known: Vec<&str> = quants::supported().map(GgmlType::name).collect();
        format!("{option} (one of {})", known.join(", "))
    })
}
