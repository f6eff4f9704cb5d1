//! Matrices with what is added to their products: biases and adapters.

use super::matrix::{Matrix, Product, multiply, multiply_each};
use super::ops;

/// Someone who sees what goes into matrices: the name of the tensor, which matrix of it, and rows
/// of its inputs, a row a token.
pub(super) type Watch<'a> = Option<&'a mut (dyn FnMut(&str, usize, &[f32]) + Send)>;

/// A matrix with a bias that is added to its product.
#[derive(Debug)]
pub(super) struct Linear {
    /// The name of the weight's tensor.
    pub(super) name: String,
    pub(super) weight: Matrix,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) adapters: Vec<Adapter>,
}

/// A product of low rank that is added to a matrix (`build_lora_mm`, src/llama-graph.cpp).
#[derive(Debug)]
pub(super) struct Adapter {
    /// `rank` outputs.
    pub(super) a: Matrix,
    /// `rank` inputs.
    pub(super) b: Matrix,
    pub(super) scale: f32,
}

impl Adapter {
    /// Adds what it makes of `x` to `product`.
    fn add(&self, x: &[f32], product: &mut [f32]) {
        let narrow = multiply(&[&self.a], x).pop().unwrap_or_default();
        let wide = multiply(&[&self.b], &narrow).pop().unwrap_or_default();
        product.iter_mut().zip(wide).for_each(|(p, w)| *p += w * self.scale);
    }
}

/// Products with matrices of the same input, adapters and biases added.
pub(super) fn project<const N: usize>(linears: [&Linear; N], x: &[f32], watch: &mut Watch<'_>) -> [Vec<f32>; N] {
    if let Some(watch) = watch {
        linears.iter().for_each(|linear| watch(&linear.name, 0, &linear.weight.turned(x)));
    }
    let mut products = multiply(&linears.map(|l| &l.weight), x);
    for (product, linear) in products.iter_mut().zip(linears) {
        linear.adapters.iter().for_each(|adapter| adapter.add(x, product));
        if let Some(bias) = &linear.bias {
            ops::add_to_rows(product, bias);
        }
    }
    products.try_into().unwrap_or_else(|_| unreachable!("a product for each matrix"))
}

/// Matrices of the same shape in one tensor, each for some of the tokens.
#[derive(Debug)]
pub(super) struct Stack {
    /// The name of the weights' tensor.
    pub(super) name: String,
    /// All with the same activations.
    pub(super) weights: Vec<Matrix>,
    /// A bias for each of them, one after the other.
    pub(super) biases: Option<Vec<f32>>,
    /// For each adapter a pair of matrices for each of the weights.
    pub(super) adapters: Vec<Vec<Adapter>>,
}

impl Stack {
    /// Inputs of each output.
    pub(super) fn row_len(&self) -> usize {
        self.weights.first().map_or(0, Matrix::row_len)
    }
}

/// Products of stacks of the same input with the rows that are for each of their matrices: for each
/// stack and each of the inputs, in this order.
pub(super) fn project_each(stacks: &[&Stack], inputs: &[(usize, Vec<f32>)], watch: &mut Watch<'_>) -> Vec<Vec<f32>> {
    let pairs = || stacks.iter().flat_map(|&stack| inputs.iter().map(move |(index, x)| (stack, *index, &x[..])));
    if let Some(watch) = watch {
        pairs().for_each(|(stack, index, x)| watch(&stack.name, index, &stack.weights[index].turned(x)));
    }
    let products = pairs().map(|(stack, index, x)| Product { matrix: &stack.weights[index], x });
    let mut products = multiply_each(&products.collect::<Vec<_>>());
    for (product, (stack, index, x)) in products.iter_mut().zip(pairs()) {
        stack.adapters.iter().for_each(|adapter| adapter[index].add(x, product));
        if let Some(biases) = &stack.biases {
            let n_rows = biases.len() / stack.weights.len();
            ops::add_to_rows(product, &biases[index * n_rows..][..n_rows]);
        }
    }
    products
}
