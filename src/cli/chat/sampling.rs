//! How tokens are chosen: by options, by the model's own recommendation, or as llama.cpp does.

use std::hash::{BuildHasher as _, RandomState};

use anyhow::Result;
use clap::Args;

use crate::cli::asking_args::number;
use crate::cli::output;
use crate::gguf::Metadata;
use crate::infer::{Recommended, Sampler, Sampling};

/// How tokens are chosen.
#[derive(Args, Clone, Debug)]
pub(super) struct SamplingArgs {
    /// Always take the most probable token
    #[arg(long, conflicts_with_all = ["temp", "top_k", "top_p", "min_p", "seed"])]
    greedy: bool,
    /// Choose tokens by chance at this temperature; 0 is --greedy [default: the file's
    /// general.sampling.temp, or 0.8]
    #[arg(long, value_name = "T", value_parser = number)]
    temp: Option<f32>,
    /// Choose among so many of the most probable tokens; 0 for all [default: the file's, or 40]
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Choose among the most probable tokens that have this probability together [default: the
    /// file's, or 0.95]
    #[arg(long, value_name = "P", value_parser = number)]
    top_p: Option<f32>,
    /// Leave out tokens below this share of the largest probability [default: the file's, or 0.05]
    #[arg(long, value_name = "P", value_parser = number)]
    min_p: Option<f32>,
    /// The same seed gives the same answers [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The sampling of a model. Says what the model recommends and is not followed.
    pub(super) fn of(&self, metadata: &Metadata) -> Result<Sampling> {
        if self.greedy {
            return Ok(Sampling::Greedy);
        }
        let found = Recommended::of(metadata);
        for (key, value) in &found.not_followed {
            output::complain("note", &format!("the file recommends {key} = {value}, which is not followed"));
        }
        let found = Recommended {
            temperature: self.temp.or(found.temperature),
            top_k: self.top_k.map(|k| k as usize).or(found.top_k),
            top_p: self.top_p.or(found.top_p),
            min_p: self.min_p.or(found.min_p),
            ..found
        };
        // The keys of the standard library's hashes are by chance.
        let sampling = found.sampling(self.seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32));
        Sampler::new(sampling.clone())?;
        Ok(sampling)
    }
}

/// A sampling in words, with the options that give it again.
pub(super) fn words(sampling: &Sampling) -> String {
    match sampling {
        Sampling::Greedy => "--greedy".to_owned(),
        Sampling::Random { temperature, top_k, top_p, min_p, seed } => {
            format!("--temp {temperature} --top-k {top_k} --top-p {top_p} --min-p {min_p} --seed {seed}")
        }
    }
}
