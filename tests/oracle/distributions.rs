//! Weights that a codec meets, and some that are made to trip it.

/// xorshift64*: the same numbers on every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// From 0 to 1.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 24) as f32
    }

    pub(crate) fn normal(&mut self) -> f32 {
        let (u, v) = (self.uniform().max(1e-7), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    }
}

/// Makes the next weight, given its position.
type Next = fn(&mut Random, usize) -> f32;

/// Each distribution by name.
pub(crate) const DISTRIBUTIONS: [(&str, Next); 14] = [
    ("normal", |r, _| r.normal() * 0.02),
    ("heavy tails", |r, _| r.normal().powi(3) * 0.02),
    ("uniform", |r, _| r.uniform() * 2.0 - 1.0),
    ("mostly zero, of both signs", |r, _| match r.bits() % 16 {
        0 => r.normal(),
        n if n % 2 == 1 => -0.0,
        _ => 0.0,
    }),
    // Many weights lie exactly between two codes, and many candidates are equally good.
    ("on a grid", |r, _| ((r.bits() % 31) as f32 - 15.0) * 0.0625),
    ("one size, both signs", |r, _| if r.bits() & 1 == 0 { 0.5 } else { -0.5 }),
    // From denormal numbers up to where sums of squares overflow an f16 scale.
    ("any exponent", |r, _| r.normal() * 10f32.powi((r.bits() % 44) as i32 - 40)),
    ("a size for each sub-block", |r, i| r.normal() * 2f32.powi((i / 16 % 23) as i32 - 20)),
    ("outliers", |r, i| if i % 97 == 0 { 100.0 * r.normal() } else { r.normal() * 0.01 }),
    ("blocks without weights", |r, i| match i / 32 % 3 {
        0 => 0.0,
        1 => r.normal() * 1e-17,
        _ => r.normal(),
    }),
    ("one weight a block", |r, i| if i % 256 == 77 { r.normal() } else { 0.0 }),
    // Where a logarithm of the largest weight is rounded.
    ("next to powers of two", |r, i| {
        let power = 2f32.powi((i / 32 % 40) as i32 - 20);
        let x = [power, power.next_up(), power.next_down(), power * 0.5, power * 0.75][(r.bits() % 5) as usize];
        if r.bits() & 1 == 0 { x } else { -x }
    }),
    // Every exponent there is, another for each 16 weights, the largest of which is a power of two.
    ("every exponent", |r, i| {
        let block = i / 16;
        let exponent = (block * 7 + block / 277) % 277;
        let power = 2f64.powi(exponent as i32 - 149);
        if i % 16 == block % 16 { power as f32 } else { (power * f64::from(2.0 * r.uniform() - 1.0)) as f32 }
    }),
    ("any finite bits", |r, i| {
        if i % 64 == 5 {
            return if i % 128 == 5 { f32::MAX } else { -f32::MAX.next_down() };
        }
        loop {
            let x = f32::from_bits(r.bits());
            if x.is_finite() {
                break x;
            }
        }
    }),
];

/// Whether sums of squares of some of these weights are infinite.
pub(crate) fn overflows(distribution: &str) -> bool {
    ["every exponent", "any finite bits"].contains(&distribution)
}

/// `n` weights.
pub(crate) fn weights(next: Next, n: usize) -> Vec<f32> {
    let mut random = Random::new(n as u64);
    (0..n).map(|i| next(&mut random, i)).collect()
}

/// Importances as a matrix has them: not negative, some zero, a few columns far above the others.
pub(crate) fn importance(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|i| {
            let x = random.normal();
            match i {
                _ if i % 61 == 0 => 0.0,
                _ if i % 113 == 0 => 50.0 * x * x,
                _ => x * x,
            }
        })
        .collect()
}
