//! The sampling that the makers of a model recommend.

use super::Sampling;
use crate::chat::SAMPLING;
use crate::gguf::Metadata;

/// What `general.sampling.*` says, of what is sampled by here. llama.cpp takes these as defaults
/// (`common_init_sampler_from_model`, common/common.cpp).
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Recommended {
    /// `temp`.
    pub temperature: Option<f32>,
    /// `top_k`.
    pub top_k: Option<usize>,
    /// `top_p`.
    pub top_p: Option<f32>,
    /// `min_p`.
    pub min_p: Option<f32>,
    /// Keys that say something else, which is not followed, with their values.
    pub not_followed: Vec<(String, String)>,
}

/// What stands for a key that is not there: the defaults of llama.cpp (common/common.h).
const TEMPERATURE: f32 = 0.8;
const TOP_K: usize = 40;
const TOP_P: f32 = 0.95;
const MIN_P: f32 = 0.05;

/// Keys of samplers that are not built in, with the value at which they do nothing. How far back a
/// penalty looks, and where a sampler begins that is off, is nothing by itself.
const OTHERS: [(&str, Option<f64>); 7] = [
    ("penalty_repeat", Some(1.0)),
    ("penalty_last_n", None),
    ("xtc_probability", Some(0.0)),
    ("xtc_threshold", None),
    ("mirostat", Some(0.0)),
    ("mirostat_tau", None),
    ("mirostat_eta", None),
];

impl Recommended {
    /// Reads the keys. Numbers may be of any type, and written as text, as llama.cpp takes them; a
    /// share beyond 0 to 1 is the nearest of these.
    pub fn of(metadata: &Metadata) -> Self {
        let mut found = Recommended::default();
        for (key, value) in metadata.iter() {
            let Some(name) = key.strip_prefix(SAMPLING) else { continue };
            let text = metadata.get_str(key).and_then(|text| text.to_string().trim().parse::<f64>().ok());
            let number = value.as_f64().or(text).filter(|number| number.is_finite());
            let share = |number: f64| number.clamp(0.0, 1.0) as f32;
            match (name, number) {
                ("temp", Some(number)) => found.temperature = Some((number as f32).clamp(0.0, f32::MAX)),
                // Below 1 it is off, as 0 is.
                ("top_k", Some(number)) => found.top_k = Some(number.clamp(0.0, f64::from(u32::MAX)) as usize),
                ("top_p", Some(number)) => found.top_p = Some(share(number)),
                ("min_p", Some(number)) => found.min_p = Some(share(number)),
                _ if OTHERS.iter().any(|(other, idle)| *other == name && (idle.is_none() || *idle == number)) => {}
                _ => found.not_followed.push((key.to_owned(), value.summary())),
            }
        }
        found
    }

    /// How tokens are chosen by this, and by llama.cpp's defaults where it says nothing.
    pub fn sampling(&self, seed: u64) -> Sampling {
        let temperature = self.temperature.unwrap_or(TEMPERATURE);
        if temperature == 0.0 {
            return Sampling::Greedy;
        }
        Sampling::Random {
            temperature,
            top_k: self.top_k.unwrap_or(TOP_K),
            top_p: self.top_p.unwrap_or(TOP_P),
            min_p: self.min_p.unwrap_or(MIN_P),
            seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Value;

    fn of(keys: &[(&str, Value)]) -> Recommended {
        let mut metadata = Metadata::default();
        keys.iter().for_each(|(name, value)| {
            metadata.set(&format!("{SAMPLING}{name}"), value.clone());
        });
        Recommended::of(&metadata)
    }

    #[test]
    fn what_the_file_says_is_followed_and_else_llama_cpp() {
        let random = |temperature, top_k, top_p, min_p| Sampling::Random { temperature, top_k, top_p, min_p, seed: 7 };
        assert_eq!(of(&[]).sampling(7), random(0.8, 40, 0.95, 0.05));
        let found = of(&[("temp", Value::F32(0.5)), ("top_k", Value::I32(64)), ("top_p", Value::String("1.0".into()))]);
        assert_eq!(found.sampling(7), random(0.5, 64, 1.0, 0.05));
        let found = of(&[("temp", Value::F32(-1.0)), ("min_p", Value::F32(3.0))]);
        assert_eq!((found.sampling(7), found.min_p), (Sampling::Greedy, Some(1.0)));
        let found = of(&[("top_k", Value::I32(-1)), ("top_p", Value::F32(-0.5))]);
        assert_eq!(found.sampling(7), random(0.8, 0, 0.0, 0.05));
    }

    #[test]
    fn what_is_not_followed_is_named_unless_it_does_nothing() {
        let idle =
            [("penalty_repeat", Value::F32(1.0)), ("penalty_last_n", Value::I32(64)), ("mirostat", Value::I32(0))];
        assert_eq!(of(&idle), Recommended::default());
        let keys = [
            ("penalty_repeat", Value::F32(1.1)),
            ("temp", Value::F32(f32::NAN)),
            ("sequence", Value::String("top_k;temperature".into())),
        ];
        let found = of(&keys);
        let names: Vec<&str> = found.not_followed.iter().map(|(key, _)| key.as_str()).collect();
        let expected = ["penalty_repeat", "temp", "sequence"].map(|name| format!("{SAMPLING}{name}"));
        assert_eq!(names, expected);
        assert_eq!(found.temperature, None);
    }
}
