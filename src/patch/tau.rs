//! Rows of a vector that is extracted, from base and chat.

use super::low_rank::Rows;
use crate::pipeline;
use crate::plan::TensorPlan;
use crate::survey::{self, Inputs, Operand};

/// τ of one tensor of a plan of [`super::plan_extract`].
pub(super) struct Tau<'a> {
    inputs: &'a Inputs,
    plan: &'a TensorPlan,
}

impl<'a> Tau<'a> {
    pub(super) fn new(inputs: &'a Inputs, plan: &'a TensorPlan) -> Self {
        Tau { inputs, plan }
    }

    /// Rows of τ, and those of the base in `base`; it stays empty if there is none.
    pub(super) fn read(&self, first: u64, tau: &mut [f32], base: &mut Vec<f32>) -> Result<(), pipeline::Error> {
        let mut operands = survey::operands(None, &self.plan.terms);
        if let Some(plus) = operands.next() {
            self.load(&plus, first, tau)?;
        }
        base.clear();
        if let Some(minus) = operands.next() {
            base.resize(tau.len(), 0.0);
            self.load(&minus, first, base)?;
            tau.iter_mut().zip(&*base).for_each(|(t, b)| *t -= b);
        }
        Ok(())
    }

    fn load(&self, operand: &Operand, first: u64, out: &mut [f32]) -> Result<(), pipeline::Error> {
        let source = self.inputs.source(operand.at.source);
        let info = source.tensor(operand.at.tensor);
        let (row_len, row_size) = (info.row_len(), info.row_size());
        let n_rows = out.len() as u64 / row_len.max(1);
        for (run, from) in self.inputs.rows(operand, &[]).runs(first..first + n_rows) {
            let of = |unit: u64| ((run.start - first) * unit) as usize..((run.end - first) * unit) as usize;
            let out = &mut out[of(row_len)];
            let Some(from) = from else {
                out.fill(0.0);
                continue;
            };
            let mut blocks = vec![0; ((run.end - run.start) * row_size) as usize];
            source.read(operand.at.tensor, from * row_size, &mut blocks)?;
            survey::decode(source, operand.at.tensor, from * row_len, &blocks, out)?;
        }
        Ok(())
    }
}

impl Rows for Tau<'_> {
    type Error = pipeline::Error;

    fn n_rows(&self) -> u64 {
        self.plan.ne.get(1).copied().unwrap_or(1)
    }

    fn row_len(&self) -> usize {
        self.plan.ne.first().map_or(0, |n| *n as usize)
    }

    fn read(&self, first: u64, out: &mut [f32]) -> Result<(), Self::Error> {
        Tau::read(self, first, out, &mut Vec::new())
    }
}
