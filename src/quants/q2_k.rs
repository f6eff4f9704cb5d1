//! Q2_K: 16 sub-blocks of 16 weights, each with a scale and a minimum of 4 bits.
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..16 | `scales` | byte j: scale of sub-block j in the low half, its minimum in the high half |
//! | 16..80 | `qs` | codes, a plane of 2 bits |
//! | 80..82 | `d` | f16: what the scales count |
//! | 82..84 | `dmin` | f16: what the minimums count |
//!
//! w = (d·scale)·q − dmin·minimum. Encoder `quantize_row_q2_K_ref`, decoder `dequantize_row_q2_K` of ggml-quants.c.

use super::float::{read_f16, write_f16};
use super::rounding::nearest_int;
use super::scales::largest;
use super::search::{self, Candidates, LANES, requantize};
use super::{QK_K, field, field_mut, planes};

/// Weights in a sub-block.
const SUB: usize = 16;
const N_SUB: usize = QK_K / SUB;

const CANDIDATES: Candidates = Candidates { nmax: 3.0, rmin: -0.5, rdelta: 0.1, nstep: 15, use_mad: true };

#[inline(always)]
pub(super) fn decode(block: &[u8; 84], w: &mut [f32; QK_K]) {
    let scales: &[u8; N_SUB] = field(block, 0);
    let (d, dmin) = (read_f16(field(block, 80)), read_f16(field(block, 82)));
    let mut codes = [0; QK_K];
    planes::unpack_pairs(field(block, 16), 0, &mut codes);
    for ((w, codes), sc) in w.as_chunks_mut::<SUB>().0.iter_mut().zip(codes.as_chunks::<SUB>().0).zip(scales) {
        let (dl, ml) = (d * f32::from(sc & 0xf), dmin * f32::from(sc >> 4));
        for (w, &q) in w.iter_mut().zip(codes) {
            *w = dl * f32::from(q) - ml;
        }
    }
}

pub(super) fn encode(w: &[f32; QK_K], block: &mut [u8; 84]) {
    let mut codes = [0; QK_K];
    let (mut scales, mut mins) = ([0.0; N_SUB], [0.0; N_SUB]);
    search::each_group::<SUB>(w, &mut codes, |x, codes, at| {
        let weights = x.map(|x| x.map(f32::abs));
        let (scale, min) = search::scale_and_min(x, &weights, &CANDIDATES, codes);
        scales[at..at + LANES].copy_from_slice(&scale);
        mins[at..at + LANES].copy_from_slice(&min);
    });

    // A search can end on a negative scale. Its low byte is stored as it is, so it spills into the minimum's bits, in
    // ggml too: what counts below is therefore the byte, not the two numbers.
    let (max_scale, max_min) = (largest(&scales), largest(&mins));
    let stored: &mut [u8; N_SUB] = field_mut(block, 0);
    stored.fill(0);
    if max_scale > 0.0 {
        let iscale = 15.0 / max_scale;
        for (byte, scale) in stored.iter_mut().zip(scales) {
            *byte = nearest_int(iscale * scale) as u8;
        }
    }
    if max_min > 0.0 {
        let iscale = 15.0 / max_min;
        for (byte, min) in stored.iter_mut().zip(mins) {
            *byte |= (nearest_int(iscale * min) << 4) as u8;
        }
    }
    let stored = *stored;
    let d = write_f16(if max_scale > 0.0 { max_scale / 15.0 } else { 0.0 }, field_mut(block, 80));
    let dmin = write_f16(if max_min > 0.0 { max_min / 15.0 } else { 0.0 }, field_mut(block, 82));

    for ((w, codes), sc) in w.as_chunks::<SUB>().0.iter().zip(codes.as_chunks_mut::<SUB>().0).zip(stored) {
        requantize(w, d * f32::from(sc & 0xf), dmin * f32::from(sc >> 4), 0.0, 3.0, codes);
    }
    planes::pack_pairs(&codes, 0, field_mut(block, 16));
}
