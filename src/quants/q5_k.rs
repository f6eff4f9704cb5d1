//! Q5_K: 8 sub-blocks of 32 weights, each with a scale and a minimum of 6 bits; Q4_K with a fifth bit.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..2 | `d` | f16: what the scales count |
//! | 2..4 | `dmin` | f16: what the minimums count |
//! | 4..16 | `scales` | scales and minimums, packed as in `scales` |
//! | 16..48 | `qh` | bit 4 of each code, a plane of 1 bit |
//! | 48..176 | `qs` | bits 0 to 3 of each code, a plane of 4 bits |
//!
//! w = (d·scale)·q − dmin·minimum. Encoder `quantize_row_q5_K_ref`, decoder `dequantize_row_q5_K` of ggml-quants.c.

use super::search::Candidates;
use super::{QK_K, field, field_mut, planes, q4_k};

const CANDIDATES: Candidates = Candidates { nmax: 31.0, rmin: -0.5, rdelta: 0.1, nstep: 15, use_mad: false };

#[inline(always)]
pub(super) fn decode(block: &[u8; 176], w: &mut [f32; QK_K]) {
    let mut codes = [0; QK_K];
    planes::unpack_nibbles(field(block, 48), &mut codes);
    planes::unpack_bits(field(block, 16), 4, &mut codes);
    q4_k::decode_codes(field(block, 0), &codes, w);
}

pub(super) fn encode(w: &[f32; QK_K], block: &mut [u8; 176]) {
    let codes = q4_k::encode_codes(w, &CANDIDATES, field_mut(block, 0));
    planes::pack_bits(&codes, 4, field_mut(block, 16));
    planes::pack_nibbles(&codes, field_mut(block, 48));
}
