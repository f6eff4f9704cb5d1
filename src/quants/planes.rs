//! How the codes of a super-block lie in bytes: in planes of 1, 2 or 4 bits of each code.
//!
//! Every K type cuts the bits of its 256 codes into such planes, and there is one way for each
//! width. In all of them neighbouring weights lie in neighbouring bytes, so that one shift serves
//! many:
//!
//! | plane | bytes | byte | holds, from its low bits up, weights |
//! |---|---|---|---|
//! | `bits` | 32 | i | i, i + 32, i + 64, …, i + 224 |
//! | `pairs` | 64 | 32·h + i | 128·h + (i, i + 32, i + 64, i + 96) |
//! | `nibbles` | 128 | 32·g + i | 64·g + (i, i + 32) |
//!
//! with i below 32. Q6_K is the exception: its 4-bit plane pairs weights 64 apart and is in its own
//! file.
//!
//! The functions stay calls: 256 codes are worth one, and inlined into a decoder the compiler
//! unpacked code by code.

use super::QK_K;

/// One code a weight, not packed.
pub(super) type Codes = [u8; QK_K];

/// ORs bit `shift` into the codes from a plane of one bit.
#[inline(never)]
pub(super) fn unpack_bits(plane: &[u8; 32], shift: u32, codes: &mut Codes) {
    for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, byte) in codes.iter_mut().zip(plane) {
            *code |= (byte >> k & 1) << shift;
        }
    }
}

/// The plane of bit `shift` of each code.
#[inline(never)]
pub(super) fn pack_bits(codes: &Codes, shift: u32, plane: &mut [u8; 32]) {
    plane.fill(0);
    for (k, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        for (byte, code) in plane.iter_mut().zip(codes) {
            *byte |= (code >> shift & 1) << k;
        }
    }
}

/// ORs bits `shift` and `shift + 1` into the codes from a plane of two bits.
#[inline(never)]
pub(super) fn unpack_pairs(plane: &[u8; 64], shift: u32, codes: &mut Codes) {
    for (plane, codes) in plane.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<128>().0) {
        for (k, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, byte) in codes.iter_mut().zip(plane) {
                *code |= (byte >> (2 * k) & 3) << shift;
            }
        }
    }
}

/// The plane of bits `shift` and `shift + 1` of each code.
#[inline(never)]
pub(super) fn pack_pairs(codes: &Codes, shift: u32, plane: &mut [u8; 64]) {
    plane.fill(0);
    for (plane, codes) in plane.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<128>().0) {
        for (k, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
            for (byte, code) in plane.iter_mut().zip(codes) {
                *byte |= (code >> shift & 3) << (2 * k);
            }
        }
    }
}

/// The low four bits of the codes, from a plane of four; the high ones are 0.
#[inline(never)]
pub(super) fn unpack_nibbles(plane: &[u8; 128], codes: &mut Codes) {
    for (plane, codes) in plane.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<64>().0) {
        for (i, byte) in plane.iter().enumerate() {
            codes[i] = byte & 0xf;
            codes[i + 32] = byte >> 4;
        }
    }
}

/// The plane of the low four bits of each code.
#[inline(never)]
pub(super) fn pack_nibbles(codes: &Codes, plane: &mut [u8; 128]) {
    for (plane, codes) in plane.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
        for (i, byte) in plane.iter_mut().enumerate() {
            *byte = codes[i] & 0xf | codes[i + 32] << 4;
        }
    }
}
