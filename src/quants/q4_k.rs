//! Q4_K: 8 sub-blocks of 32 weights, each with a scale and a minimum of 6 bits.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..2 | `d` | f16: what the scales count |
//! | 2..4 | `dmin` | f16: what the minimums count |
//! | 4..16 | `scales` | scales and minimums, packed as in `scales` |
//! | 16..144 | `qs` | codes, a plane of 4 bits |
//!
//! w = (d·scale)·q − dmin·minimum. Encoder `quantize_row_q4_K_ref`, decoder `dequantize_row_q4_K` of ggml-quants.c.

use super::float::read_f16;
use super::search::{self, Candidates, Group, Lanes, requantize};
use super::{QK_K, field, field_mut, planes, scales};

/// Weights in a sub-block.
const SUB: usize = 32;

const CANDIDATES: Candidates = Candidates { nmax: 15.0, rmin: -1.0, rdelta: 0.1, nstep: 20, use_mad: false };

#[inline(always)]
pub(super) fn decode(block: &[u8; 144], w: &mut [f32; QK_K]) {
    let mut codes = [0; QK_K];
    planes::unpack_nibbles(field(block, 16), &mut codes);
    decode_codes(field(block, 0), &codes, w);
}

pub(super) fn encode(w: &[f32; QK_K], block: &mut [u8; 144]) {
    let codes = encode_codes(w, &CANDIDATES, field_mut(block, 0));
    planes::pack_nibbles(&codes, field_mut(block, 16));
}

/// Weights from codes and the first 16 bytes of a block, which Q5_K has in common.
#[inline(always)]
pub(super) fn decode_codes(head: &[u8; 16], codes: &planes::Codes, w: &mut [f32; QK_K]) {
    let (d, dmin) = (read_f16(field(head, 0)), read_f16(field(head, 2)));
    let (scales, mins) = scales::unpack(field(head, 4));
    let sub_blocks = w.as_chunks_mut::<SUB>().0.iter_mut().zip(codes.as_chunks::<SUB>().0);
    for ((w, codes), (scale, min)) in sub_blocks.zip(scales.into_iter().zip(mins)) {
        let (dl, ml) = (d * f32::from(scale), dmin * f32::from(min));
        for (w, &q) in w.iter_mut().zip(codes) {
            *w = dl * f32::from(q) - ml;
        }
    }
}

/// Codes and the first 16 bytes of a block, which Q5_K has in common up to the candidates.
#[inline(always)]
pub(super) fn encode_codes(w: &[f32; QK_K], candidates: &Candidates, head: &mut [u8; 16]) -> planes::Codes {
    let mut codes = [0; QK_K];
    let (mut scales, mut mins) = ([0.0; scales::N_SUB], [0.0; scales::N_SUB]);
    // One group: there are as many sub-blocks as lanes.
    search::each_group::<SUB>(w, &mut codes, |x, codes, at| {
        let (scale, min) = search::scale_and_min(x, &importance(x), candidates, codes);
        scales[at..at + search::LANES].copy_from_slice(&scale);
        mins[at..at + search::LANES].copy_from_slice(&min);
    });
    let stored = scales::encode(&scales, &mins, head);
    for ((w, codes), (scale, min)) in w.as_chunks::<SUB>().0.iter().zip(codes.as_chunks_mut::<SUB>().0).zip(stored) {
        requantize(w, scale, min, 0.0, candidates.nmax, codes);
    }
    codes
}

/// How much a weight's error counts when nothing else is known: its size, plus the root mean square of its sub-block.
#[inline(always)]
fn importance(x: &Group<SUB>) -> Group<SUB> {
    let mut sum_x2: Lanes<f32> = [0.0; search::LANES];
    for x in x {
        for (sum, x) in sum_x2.iter_mut().zip(x) {
            *sum += x * x;
        }
    }
    let av_x = sum_x2.map(|sum| (sum / SUB as f32).sqrt());
    x.map(|x| std::array::from_fn(|k| av_x[k] + x[k].abs()))
}
