//! One feed-forward layer with its input, ready to be run again and again.
//!
//! Shape letters: t tokens, d model width, e experts.

use std::hint::black_box;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use switchyard_experts::{
    DenseFfn, DenseFfnWeights, DenseSpec, ExpertsSpec, FfnOptions, FfnSpec, MoeInput, MoeLayer, MoeOutput,
    MoeSpec, RouterSpec,
};
use switchyard_model::{
    AttentionSpec, FeedForward, InitConfig, LayerSpec, MixerSpec, ModelSpec, MultipliersConfig, NormKind,
    ParameterSource, PositionKind, Residual,
};
use switchyard_router::{RouterConfig, RouterNoise, RouterPass, Sequences};

use super::LayerCase;
use crate::TrainError;

const LOAD_BALANCING_WEIGHT: f64 = 0.01;
/// Gate logit by which the hot expert is ahead or behind; the others' logits have a deviation below
/// 2 up to a width of 4096.
const HOT_LOGIT: f32 = 30.0;

/// A layer, an input and the gradient of its output.
#[derive(Debug, Clone)]
pub(super) struct LayerWork {
    layer: FeedForward,
    x_td: Tensor<2>,
    /// Of the output, as a column of `t * d` elements.
    gradient: Tensor<2>,
}

impl LayerWork {
    /// The layer of `case` with normal weights and input.
    pub(super) fn new(case: &LayerCase) -> Self {
        let device = Device::flex().autodiff();
        let source = ParameterSource::new(case.seed, &device);
        let shape_td = [case.num_tokens, case.d_model];
        Self {
            layer: FeedForward::new(&spec(case), 0, "layer", &source).expect("a layer with a block"),
            x_td: source.normal("x", shape_td, 1.0).require_grad(),
            gradient: source.normal("gradient", shape_td, 1.0).reshape([case.num_tokens * case.d_model, 1]),
        }
    }

    /// The dense layer of as many active FLOPs.
    pub(super) fn dense(case: &LayerCase) -> Self {
        let dense = LayerCase {
            d_ff: case.active_width(),
            num_experts: None,
            top_k: None,
            hot_expert_fraction: None,
            ..case.clone()
        };
        Self::new(&dense)
    }

    /// What a mixture multiplies and activates, and nothing else: each expert as a dense layer on
    /// as many rows as it has tokens, which lie together. Empty for a dense layer.
    pub(super) fn experts_alone(&self) -> Vec<Self> {
        let FeedForward::Moe(moe) = &self.layer else { return Vec::new() };
        let [_, d] = self.x_td.dims();
        let expert = |(index, num_rows): (usize, u64)| {
            let matrix = |stack_exy: &Param<Tensor<3>>| {
                let [_, rows, columns] = stack_exy.val().dims();
                stack_exy.val().narrow(0, index, 1).reshape([rows, columns]).detach()
            };
            let weights = DenseFfnWeights {
                w_gate_df: moe.experts.w_gate_edf.as_ref().map(matrix),
                w_up_df: matrix(&moe.experts.w_up_edf),
                w_down_fd: matrix(&moe.experts.w_down_efd),
                b_gate_f: None,
                b_up_f: None,
                b_down_d: None,
            };
            // An expert has each token at most once.
            let n = num_rows as usize;
            Self {
                layer: FeedForward::Dense(DenseFfn::new(weights, moe.experts.activation())),
                x_td: self.x_td.clone().narrow(0, 0, n).detach().require_grad(),
                gradient: self.gradient.clone().narrow(0, 0, n * d),
            }
        };
        let with_rows = |&(_, num_rows): &(usize, u64)| num_rows > 0;
        self.tokens_per_expert().into_iter().enumerate().filter(with_rows).map(expert).collect()
    }

    /// The same layer where each token's last feature decides about expert 0 alone, and the input
    /// whose last feature is 0: expert 0 is one among others.
    pub(super) fn with_switchable_expert(mut self) -> Self {
        if let FeedForward::Moe(moe) = &mut self.layer
            && let Some(weight_de) = moe.router.weight_de.as_ref().map(Param::val)
        {
            let [d, e] = weight_de.dims();
            let mut last_row = vec![0.0; e];
            last_row[0] = HOT_LOGIT;
            let last_row = Tensor::from_data(TensorData::new(last_row, [1, e]), &weight_de.device());
            moe.router.weight_de =
                Some(Param::from_tensor(weight_de.slice_assign([d - 1..d, 0..e], last_row).detach()));
        }
        self.with_last_feature(|_| 0.0)
    }

    /// The same layer with an input that `fraction` of the tokens send to expert 0, evenly spread,
    /// and the others do not.
    pub(super) fn with_hot_expert(self, fraction: f64) -> Self {
        let hot_before = |token: usize| (token as f64 * fraction).floor();
        self.with_last_feature(|token| if hot_before(token + 1) > hot_before(token) { 1.0 } else { -1.0 })
    }

    fn with_last_feature(self, value: impl Fn(usize) -> f32) -> Self {
        let [t, d] = self.x_td.dims();
        let column: Vec<f32> = (0..t).map(value).collect();
        let column = Tensor::from_data(TensorData::new(column, [t, 1]), &self.x_td.device());
        let x_td = self.x_td.detach().slice_assign([0..t, d - 1..d], column);
        Self { x_td: x_td.detach().require_grad(), ..self }
    }

    /// One forward pass, without gradients.
    pub(super) fn infer(&self) -> Result<(), TrainError> {
        let inner = Self {
            layer: self.layer.valid(),
            x_td: self.x_td.clone().inner(),
            gradient: self.gradient.clone().inner(),
        };
        black_box(inner.forward());
        Ok(())
    }

    /// One forward and backward pass: the gradients of the input and of every weight.
    pub(super) fn train(&self) -> Result<(), TrainError> {
        let gradients = self.objective().backward();
        black_box((self.x_td.grad(&gradients), gradients));
        Ok(())
    }

    /// Whose gradient with respect to the output is the given one.
    fn objective(&self) -> Tensor<1> {
        let (y_td, balancing) = self.forward();
        let num_elements = y_td.dims().iter().product();
        // A product with a column of weights costs less than weighting every element and summing
        // up.
        let objective = y_td.reshape([1, num_elements]).matmul(self.gradient.clone()).reshape([1]);
        match balancing {
            Some(balancing) => objective + balancing.mul_scalar(LOAD_BALANCING_WEIGHT),
            None => objective,
        }
    }

    /// The output, and the load-balancing loss of a mixture.
    fn forward(&self) -> (Tensor<2>, Option<Tensor<1>>) {
        match &self.layer {
            FeedForward::Dense(dense) => (dense.forward(self.x_td.clone(), FfnOptions::default()), None),
            FeedForward::BlockSparse(ffn) => (ffn.forward(self.x_td.clone()), None),
            FeedForward::Moe(moe) => {
                let MoeOutput { hidden_td, aux } = self.forward_moe(moe);
                (hidden_td, aux.losses.into_iter().next().map(|loss| loss.value_1))
            }
        }
    }

    /// Tokens of each expert; empty if the layer is dense.
    pub(super) fn tokens_per_expert(&self) -> Vec<u64> {
        match &self.layer {
            FeedForward::Dense(_) | FeedForward::BlockSparse(_) => Vec::new(),
            FeedForward::Moe(moe) => self.forward_moe(moe).aux.statistics.tokens_per_expert().to_vec(),
        }
    }

    fn forward_moe(&self, moe: &MoeLayer) -> MoeOutput {
        let [num_tokens, _] = self.x_td.dims();
        moe.forward(MoeInput {
            x_td: self.x_td.clone(),
            router_x_td: None,
            token_ids_t: &[],
            sequences: Sequences::OfLen(num_tokens),
            pass: RouterPass::Training { noise: RouterNoise::new(0), earlier_tokens_per_expert: &[] },
            options: FfnOptions::default(),
        })
    }
}

/// A model whose only layer has the feed-forward block of `case`.
fn spec(case: &LayerCase) -> ModelSpec {
    let activation = case.activation;
    let ffn = match case.num_experts.zip(case.top_k) {
        Some((num_experts, top_k)) => FfnSpec::Moe(MoeSpec {
            experts: ExpertsSpec {
                activation,
                num_experts,
                d_expert: case.d_ff,
                granularity: None,
                bias: false,
                shared: None,
            },
            router: RouterSpec {
                key: "top_k".into(),
                config: RouterConfig {
                    load_balancing_weight: Some(LOAD_BALANCING_WEIGHT),
                    ..RouterConfig::top_k(top_k)
                },
            },
            capacity: None,
        }),
        None => FfnSpec::Dense(DenseSpec { activation, d_ff: case.d_ff, bias: false }),
    };
    let attention = AttentionSpec::new(1, 1, case.d_model);
    ModelSpec {
        vocab_size: 2,
        max_seq_len: case.num_tokens,
        d_model: case.d_model,
        layers: vec![LayerSpec {
            mixer: MixerSpec::Attention(attention),
            ffn,
            residual: Residual::Sequential,
        }],
        norm: NormKind::Rms { epsilon: 1e-5 },
        position: PositionKind::Sinusoidal,
        tie_embeddings: false,
        dropout: 0.0,
        init: InitConfig::default(),
        num_positions: None,
        multipliers: MultipliersConfig::default(),
        parametrisation: None,
        head_bias: false,
        padding_id: None,
    }
}

#[cfg(test)]
mod tests {
    use switchyard_experts::Activation;

    use super::*;

    fn case() -> LayerCase {
        LayerCase {
            num_tokens: 200,
            d_model: 16,
            d_ff: 8,
            activation: Activation::Swiglu,
            num_experts: Some(4),
            top_k: Some(2),
            hot_expert_fraction: None,
            seed: 1,
            threads: None,
        }
    }

    #[test]
    fn the_hot_expert_gets_its_share_and_the_others_the_rest() {
        for fraction in [0.1, 0.5, 1.0] {
            let hot = LayerWork::new(&case()).with_switchable_expert().with_hot_expert(fraction);
            let tokens = hot.tokens_per_expert();
            assert_eq!(tokens[0], (200.0 * fraction) as u64);
            assert_eq!(tokens.iter().sum::<u64>(), 400);
        }
    }

    #[test]
    fn without_a_hot_expert_no_expert_stands_out() {
        let tokens = LayerWork::new(&case()).with_switchable_expert().tokens_per_expert();
        // 100 each on average; the gates of one random router differ by far less than this.
        assert!(tokens.iter().all(|&tokens| (50..150).contains(&tokens)), "{tokens:?}");
    }

    #[test]
    fn experts_alone_compute_as_many_rows_as_the_mixture() {
        let work = LayerWork::new(&case());
        let num_rows: usize = work.experts_alone().iter().map(|expert| expert.x_td.dims()[0]).sum();
        assert_eq!(num_rows, 400);
        work.experts_alone().iter().for_each(|expert| expert.train().unwrap());
        assert!(LayerWork::dense(&case()).experts_alone().is_empty());
    }

    #[test]
    fn the_output_gradient_is_the_given_one() {
        let work = LayerWork::dense(&case());
        let [t, d] = work.x_td.dims();
        let given_td = work.gradient.clone().reshape([t, d]);
        let by_column = work.objective().backward();
        let by_sum = (work.forward().0 * given_td).sum().backward();
        let values = |gradients| work.x_td.grad(gradients).unwrap().into_data().try_to_vec::<f32>().unwrap();
        for (a, b) in values(&by_column).iter().zip(values(&by_sum)) {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} is not {b}");
        }
    }
}
