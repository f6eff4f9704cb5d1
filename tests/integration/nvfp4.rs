//! Scales that lie beside weights, as in NVFP4 models: what is added, what is written, and what is
//! refused.
//!
//! Expectations are made here from the formats' definitions, in f64 where that is exact.

use std::path::Path;

use chatvec::infer::{Session, Transformer};
use chatvec::pipeline::{self, Budget};
use chatvec::vector;

use crate::support::{Draft, Tensor};
use crate::trio::{F16, F32, Noise, Q8_0, Trio, chatvec, decode, encode, name, open, read, weights};

const NVFP4: u32 = 40;
const Q: &str = "blk.0.attn_q";
const EXPERTS: &str = "blk.0.ffn_up_exps";

/// What NVFP4 blocks say: 4 scales of 16 weights each (8 bits: 4 of exponent, 3 of mantissa), then
/// 4 bits a weight (sign, 2 of exponent, 1 of mantissa), of which the first 8 are the low halves of
/// 8 bytes.
fn by_definition(data: &[u8]) -> Vec<f32> {
    const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let scale = |byte: u8| match (byte >> 3 & 15, f64::from(byte & 7)) {
        (0, m) => m * 2f64.powi(-9),
        (e, m) => (1.0 + m / 8.0) * 2f64.powi(i32::from(e) - 7),
    };
    let weight = |block: &[u8], i: usize| {
        let (sub, j) = (i / 16, i % 16);
        let byte = block[4 + 8 * sub + j % 8];
        let code = if j < 8 { byte & 15 } else { byte >> 4 };
        let size = E2M1[usize::from(code & 7)] * scale(block[sub]);
        (if code & 8 == 0 { size } else { -size }) as f32
    };
    data.chunks(36).flat_map(|block| (0..64).map(|i| weight(block, i)).collect::<Vec<_>>()).collect()
}

/// Adds a tensor of scales.
fn push(draft: &mut Draft, name: &str, values: &[f32]) {
    let data = Some(encode(F32, values));
    draft.tensors.push(Tensor { data, ..Tensor::new(name, &[values.len() as u64], F32) });
}

/// Writes `STEM.weight` as NVFP4 with these scales beside it, and one for the inputs.
fn scale(draft: &mut Draft, stem: &str, scales: &[f32]) {
    let tensor = draft.tensor(&format!("{stem}.weight"));
    let mut values = weights(tensor);
    let per_scale = values.len() / scales.len();
    for (values, scale) in values.chunks_mut(per_scale).zip(scales) {
        values.iter_mut().for_each(|w| *w /= scale);
    }
    (tensor.ty, tensor.data) = (NVFP4, Some(encode(NVFP4, &values)));
    push(draft, &format!("{stem}.scale"), scales);
    push(draft, &format!("{stem}.input_scale"), &vec![7.0; scales.len()]);
}

/// The tensor of this name.
#[track_caller]
fn get<'a>(draft: &'a Draft, of: &str) -> &'a Tensor {
    draft.tensors.iter().find(|t| name(t) == of).unwrap_or_else(|| panic!("{of}"))
}

fn has(draft: &Draft, of: &str) -> bool {
    draft.tensors.iter().any(|t| name(t) == of)
}

/// The numbers of `STEM.scale`, each for as many weights as it counts for.
fn scales(draft: &Draft, stem: &str) -> Vec<f32> {
    let n = get(draft, &format!("{stem}.weight")).ne.iter().product::<u64>() as usize;
    let scales = weights(get(draft, &format!("{stem}.scale")));
    (0..n).map(|i| scales[i / (n / scales.len())]).collect()
}

/// The weights of `STEM.weight` as a model computes with them.
fn true_weights(draft: &Draft, stem: &str) -> Vec<f32> {
    let tensor = get(draft, &format!("{stem}.weight"));
    if tensor.ty != NVFP4 {
        return weights(tensor);
    }
    by_definition(&tensor.data()).iter().zip(scales(draft, stem)).map(|(w, s)| w * s).collect()
}

fn wanted(trio: &Trio, stem: &str, ratio: f32) -> Vec<f32> {
    let [m, b, c] = [&trio.cp, &trio.base, &trio.chat].map(|draft| true_weights(draft, stem));
    m.iter().zip(b.iter().zip(&c)).map(|(m, (b, c))| m + ratio * (c - b)).collect()
}

/// The small trio with a stack of three experts, and `attn_q`, `output` and the stack in NVFP4,
/// with other scales in each model. Some rows of base and chat are equal.
fn scaled() -> Trio {
    let mut trio = Trio::small();
    let mut noise = Noise(5);
    let experts = noise.normals(64 * 4 * 3, 0.05);
    for (i, draft) in [&mut trio.base, &mut trio.chat, &mut trio.cp].into_iter().enumerate() {
        let drifted: Vec<f32> = experts.iter().map(|w| w + noise.normal() * 0.01).collect();
        let mut stack = Tensor::new(&format!("{EXPERTS}.weight"), &[64, 4, 3], F32);
        stack.data = Some(encode(F32, &drifted));
        draft.tensors.push(stack);
        let of = |n: f32| n * [1.0, 1.25, -0.75][i] * 2e-4;
        scale(draft, Q, &[of(1.0)]);
        scale(draft, "output", &[of(2.0)]);
        scale(draft, EXPERTS, &[of(1.0), of(3.0), of(0.5)]);
    }
    let (base, chat) = (get(&trio.base, "blk.0.attn_q.weight").clone(), &mut trio.chat);
    let tensor = chat.tensor("blk.0.attn_q.weight");
    tensor.data.as_mut().unwrap()[..144].copy_from_slice(&base.data()[..144]);
    let base_scale = get(&trio.base, "blk.0.attn_q.scale").data();
    chat.tensor("blk.0.attn_q.scale").data = Some(base_scale);
    trio
}

#[test]
fn scales_stay_the_models_and_sums_are_of_true_weights() {
    let (trio, folder) = (scaled(), tempfile::tempdir().unwrap());
    let paths = trio.write(folder.path());
    for (ty, id) in [("keep", NVFP4), ("F32", F32), ("Q8_0", Q8_0)] {
        let out = paths.merge(&folder.path().join("out.gguf"), ty, 0.5);
        for stem in [Q, EXPERTS] {
            for suffix in ["scale", "input_scale"] {
                let name = format!("{stem}.{suffix}");
                assert_eq!(get(&out, &name).data(), get(&trio.cp, &name).data(), "{name}");
            }
            let stored: Vec<f32> =
                wanted(&trio, stem, 0.5).iter().zip(scales(&trio.cp, stem)).map(|(w, s)| w / s).collect();
            let name = format!("{stem}.weight");
            let (found, own) = (get(&out, &name), get(&trio.cp, &name));
            assert_eq!(found.ty, id);
            let mut expected = encode(id, &stored);
            if id == NVFP4 && stem == Q {
                // Where nothing is added, blocks stay.
                expected[..144].copy_from_slice(&own.data()[..144]);
            }
            assert!(found.data() == expected, "{name} as {ty}");
        }
    }
    // What the model computes with is the sum, but for the rounding of a product and a quotient.
    let out = paths.merge(&folder.path().join("out.gguf"), "F32", 0.5);
    for stem in [Q, EXPERTS] {
        let found = weights(get(&out, &format!("{stem}.weight"))).into_iter().zip(scales(&out, stem));
        for ((stored, scale), wanted) in found.zip(wanted(&trio, stem, 0.5)) {
            assert!((stored * scale - wanted).abs() <= 2e-7 * wanted.abs(), "{stored} · {scale}, wanted {wanted}");
        }
    }
}

#[test]
fn each_file_has_its_own_scales_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let plain = |draft: &Draft| {
        let mut plain = draft.clone();
        for stem in [Q, "output", EXPERTS] {
            let values = true_weights(draft, stem);
            let tensor = plain.tensor(&format!("{stem}.weight"));
            (tensor.ty, tensor.data) = (F32, Some(encode(F32, &values)));
        }
        plain.tensors.retain(|t| !name(t).ends_with("scale"));
        plain
    };
    let scaled = scaled();
    let expected = Trio { cp: plain(&scaled.cp), ..scaled.clone() };
    let mixed = [
        Trio { cp: plain(&scaled.cp), ..scaled.clone() },
        Trio { base: plain(&scaled.base), cp: plain(&scaled.cp), ..scaled.clone() },
        Trio { base: plain(&scaled.base), chat: plain(&scaled.chat), cp: plain(&scaled.cp) },
    ];
    for trio in mixed {
        let out = trio.write(folder.path()).merge(&folder.path().join("out.gguf"), "F32", 1.0);
        assert!(out.tensors.iter().all(|t| !name(t).ends_with("scale")));
        for stem in [Q, "output", EXPERTS] {
            assert_eq!(weights(get(&out, &format!("{stem}.weight"))), wanted(&expected, stem, 1.0), "{stem}");
        }
    }
}

#[test]
fn the_output_keeps_its_scale_only_as_nvfp4() {
    let (trio, folder) = (scaled(), tempfile::tempdir().unwrap());
    let paths = trio.write(folder.path());
    let kept = paths.merge(&folder.path().join("kept.gguf"), "keep", 1.0);
    assert!(has(&kept, "output.scale") && has(&kept, "output.input_scale"));
    let out = paths.merge(&folder.path().join("f16.gguf"), "F16", 1.0);
    assert!(!has(&out, "output.scale") && !has(&out, "output.input_scale") && has(&out, &format!("{Q}.scale")));
    assert!(get(&out, "output.weight").data() == encode(F16, &wanted(&trio, "output", 1.0)), "true weights");
}

#[test]
fn a_patch_holds_true_weights_and_no_scales() {
    let (trio, folder) = (scaled(), tempfile::tempdir().unwrap());
    let paths = trio.write(folder.path());
    let at = |name: &str| folder.path().join(name);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (base, chat, patch) = (text(&paths.base), text(&paths.chat), text(&at("patch.gguf")));
    chatvec(["extract", "--base", &base, "--chat", &chat, "-o", &patch, "-e", "f32", "--force"]).says(0, &[]);
    let found = read(&at("patch.gguf"));
    assert!(found.tensors.iter().all(|t| !name(t).ends_with("scale")));
    for stem in [Q, "output", EXPERTS] {
        let (base, chat) = (true_weights(&trio.base, stem), true_weights(&trio.chat, stem));
        let expected: Vec<f32> = chat.iter().zip(&base).map(|(c, b)| c - b).collect();
        assert_eq!(weights(get(&found, &format!("{stem}.weight"))), expected, "{stem}");
    }
    let (cp, applied) = (text(&paths.cp), text(&at("applied.gguf")));
    chatvec(["apply", "--model", &cp, &patch, "-o", &applied, "--type", "keep", "--force"]);
    let merged = paths.merge(&at("merged.gguf"), "keep", 1.0);
    crate::trio::assert_same_tensors(&read(&at("applied.gguf")), &merged);
}

#[test]
fn scales_that_leave_no_weights_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for bad in [0.0, -0.0, f32::NAN, f32::INFINITY] {
        for which in 0..3 {
            let mut trio = scaled();
            let draft = [&mut trio.base, &mut trio.chat, &mut trio.cp].into_iter().nth(which).unwrap();
            draft.tensor(&format!("{EXPERTS}.scale")).data = Some(encode(F32, &[1.0, 1.0, bad]));
            let paths = trio.write(folder.path());
            match paths.try_merge(&folder.path().join("out.gguf"), "keep", 1.0, &Budget::default()) {
                Err(pipeline::Error::Source(vector::Error::Scale { tensor, index, value, .. })) => {
                    assert_eq!((tensor.as_str(), index), ("blk.0.ffn_up_exps.scale", 2));
                    assert!(value == bad || value.is_nan() && bad.is_nan());
                }
                other => panic!("{bad}: {other:?}"),
            }
            let words = ["blk.0.ffn_up_exps.scale", "multiplied", "damaged"];
            paths.command(&folder.path().join("out.gguf"), &["--force"]).says(3, &words);
        }
    }
}

#[test]
fn a_scale_of_another_shape_is_a_weight() {
    let (mut trio, folder) = (Trio::small(), tempfile::tempdir().unwrap());
    let mut noise = Noise(9);
    trio.each(|draft| {
        for (name, ne) in [("blk.0.ffn_gate_inp.weight", &[256u64, 4][..]), ("blk.0.ffn_gate_inp.scale", &[256])] {
            let values = noise.normals(ne.iter().product::<u64>() as usize, 1.0);
            draft.tensors.push(Tensor { data: Some(encode(F32, &values)), ..Tensor::new(name, ne, F32) });
        }
    });
    let out = trio.write(folder.path()).merge(&folder.path().join("out.gguf"), "keep", 1.0);
    let name = "blk.0.ffn_gate_inp.scale";
    let expected = crate::trio::sum(get(&trio.cp, name), get(&trio.base, name), get(&trio.chat, name), 1.0);
    assert_eq!(weights(get(&out, name)), expected);
}

#[test]
fn a_model_with_scales_says_what_its_true_weights_say() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = Trio::small().cp;
    let stems = [Q, "blk.0.attn_v", "blk.0.ffn_down", "output"];
    stems.iter().for_each(|stem| scale(&mut draft, stem, &[3e-4]));
    let mut plain = draft.clone();
    for stem in stems {
        let values = true_weights(&draft, stem);
        let tensor = plain.tensor(&format!("{stem}.weight"));
        (tensor.ty, tensor.data) = (F32, Some(encode(F32, &values)));
    }
    plain.tensors.retain(|t| !name(t).ends_with("scale"));
    let logits = |draft: &Draft| {
        let model = Transformer::load(&open(&draft.write(folder.path(), "model.gguf")), 1).unwrap();
        let mut rows = Vec::new();
        let mut session = Session::new(&model, 16, 1 << 24).unwrap();
        session.feed(&[1, 4, 2, 6, 7], 0, &mut |_, row| rows.extend_from_slice(row)).unwrap();
        rows
    };
    let (found, expected) = (logits(&draft), logits(&plain));
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        // Activations are rounded to 8 bits before they meet NVFP4, and not before they meet F32.
        assert!((found - expected).abs() <= 0.05 * largest, "{found}, expected {expected}");
    }
    // The definition itself is that of the codec, which `quants.rs` holds to ggml.
    let tensor = get(&draft, "output.weight");
    assert_eq!(decode(NVFP4, &tensor.data()), by_definition(&tensor.data()));
}
