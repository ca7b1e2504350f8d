//! The Transformer against tiny Hugging Face models: logits, routing, losses and every gradient.
//!
//! The models and their outputs lie in `fixtures`, made by `transformers` with random weights;
//! `meta.json` has the versions.
//!
//! Shape letters: t tokens, d model width, v vocabulary, e experts, k experts per token, f hidden
//! width.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use switchyard_datasets::TokenBatch;
use switchyard_experts::{
    Activation, DenseSpec, Experts, ExpertsSpec, ExpertsWeights, FfnSpec, MoeInput, MoeLayer, MoeSpec,
    RouterSpec,
};
use switchyard_kernels::{CausalMask, RotaryTable};
use switchyard_model::{
    Attention, AttentionBias, AttentionSpec, Embedding, InitConfig, LayerSpec, MixerSpec, ModelInput,
    ModelSpec, MultipliersConfig, Norm, NormKind, ParameterSource, Pass, PositionKind, QkNorm, QkNormConfig,
    QkNormOver, Residual, StepNoise, Transformer, parameter_data, parameter_gradients, update_parameters,
};
use switchyard_router::{
    AuxLossKind, GateWeights, RouterConfig, RouterInput, RouterPass, Routing, SoftmaxOrder,
    load_balancing_loss,
};
use switchyard_trainer::batch::DeviceBatch;
use switchyard_trainer::loss::LossParts;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// Allowed difference, as a share of the reference tensor's largest element. Both sides compute in
/// f32, each sum of up to 128 terms in its own order, through two layers and back: tens of
/// roundings of 6e-8. Measured: at most 1.2e-6.
const TOLERANCE: f64 = 5e-6;

/// Largest element below which a tensor is judged as if it had this one. The gradient of a key bias
/// is zero but for rounding, as it adds the same to all scores of a query; every other tensor has
/// larger elements.
const SMALLEST_SCALE: f64 = 1e-2;

#[test]
fn llama_has_the_reference_logits_loss_and_gradients() {
    let reference = Reference::open("llama", llama_place);
    reference.check_dense(&llama_spec());
}

#[test]
fn gpt2_has_the_reference_logits_loss_and_gradients() {
    let reference = Reference::open("gpt2", gpt2_place);
    let attention = AttentionSpec { num_kv_heads: 4, bias: AttentionBias::All, ..llama_attention() };
    let ffn = DenseSpec { activation: Activation::GeluTanh, d_ff: 128, bias: true };
    let spec = ModelSpec {
        max_seq_len: 32,
        norm: NormKind::Layer { epsilon: 1e-5, bias: true },
        position: PositionKind::Learned,
        tie_embeddings: true,
        ..spec(attention, FfnSpec::Dense(ffn))
    };
    reference.check_dense(&spec);
}

#[test]
fn mixtral_has_the_reference_logits_routing_losses_and_gradients() {
    let reference = Reference::open("mixtral", mixtral_place);
    let moe = moe_spec(4, 32, SoftmaxOrder::AfterSelection, 0.02);
    let spec =
        ModelSpec { position: PositionKind::rope(1e6), ..spec(llama_attention(), FfnSpec::Moe(moe.clone())) };
    reference.check_moe(&spec, &moe);
}

#[test]
fn qwen3_moe_has_the_reference_logits_routing_losses_and_gradients() {
    let reference = Reference::open("qwen3_moe", qwen3_place);
    let attention =
        AttentionSpec { d_head: 12, qk_norm: QkNorm::On(QkNormConfig::default()), ..llama_attention() };
    let moe = moe_spec(8, 16, SoftmaxOrder::BeforeSelection, 0.001);
    let spec =
        ModelSpec { norm: NormKind::Rms { epsilon: 1e-6 }, ..spec(attention, FfnSpec::Moe(moe.clone())) };
    reference.check_moe(&spec, &moe);
}

#[test]
fn qwen3_has_the_reference_logits_loss_and_gradients() {
    let reference = Reference::open("qwen3", llama_place);
    let qk_norm = QkNorm::On(QkNormConfig { over: QkNormOver::Head, epsilon: 1e-3 });
    let attention = AttentionSpec { d_head: 12, qk_norm, ..llama_attention() };
    let spec = ModelSpec {
        norm: NormKind::Rms { epsilon: 1e-3 },
        position: PositionKind::rope(1e6),
        ..spec(attention, llama_ffn())
    };
    reference.check_dense(&spec);
}

#[test]
fn olmoe_has_the_reference_logits_routing_losses_and_gradients() {
    let reference = Reference::open("olmoe", qwen3_place);
    let qk_norm = QkNorm::On(QkNormConfig { over: QkNormOver::Projection, epsilon: 1e-5 });
    let attention = AttentionSpec { qk_norm, ..llama_attention() };
    let mut moe = moe_spec(8, 16, SoftmaxOrder::BeforeSelection, 0.01);
    (moe.router.config.top_k, moe.router.config.renormalise) = (3, false);
    reference.check_moe(&spec(attention, FfnSpec::Moe(moe.clone())), &moe);
}

#[test]
fn falcon_with_parallel_halves_has_the_reference_logits_loss_and_gradients() {
    let reference = Reference::open("falcon_7b_style", falcon_place);
    let attention = AttentionSpec { num_kv_heads: 1, ..llama_attention() };
    let ffn = DenseSpec { activation: Activation::Gelu, d_ff: 128, bias: false };
    let mut spec = ModelSpec {
        norm: NormKind::Layer { epsilon: 1e-5, bias: true },
        tie_embeddings: true,
        ..spec(attention, FfnSpec::Dense(ffn))
    };
    spec.layers.iter_mut().for_each(|layer| layer.residual = Residual::Parallel);
    reference.check_dense(&spec);
}

fn llama_spec() -> ModelSpec {
    spec(llama_attention(), llama_ffn())
}

fn llama_ffn() -> FfnSpec {
    FfnSpec::Dense(DenseSpec { activation: Activation::Swiglu, d_ff: 64, bias: false })
}

fn llama_attention() -> AttentionSpec {
    AttentionSpec::new(4, 2, 8)
}

/// Two layers of these, all else as in the reference's Llama.
fn spec(attention: AttentionSpec, ffn: FfnSpec) -> ModelSpec {
    ModelSpec {
        vocab_size: 128,
        max_seq_len: 64,
        d_model: 32,
        layers: vec![
            LayerSpec { mixer: MixerSpec::Attention(attention), ffn, residual: Residual::Sequential };
            2
        ],
        norm: NormKind::Rms { epsilon: 1e-5 },
        position: PositionKind::rope(1e4),
        tie_embeddings: false,
        dropout: 0.0,
        init: InitConfig::default(),
        num_positions: None,
        multipliers: MultipliersConfig::default(),
        head_bias: false,
        padding_id: None,
    }
}

fn moe_spec(num_experts: usize, d_expert: usize, softmax: SoftmaxOrder, balancing_weight: f64) -> MoeSpec {
    let config =
        RouterConfig { softmax, load_balancing_weight: Some(balancing_weight), ..RouterConfig::top_k(2) };
    MoeSpec {
        experts: ExpertsSpec {
            activation: Activation::Swiglu,
            num_experts,
            d_expert,
            granularity: None,
            bias: false,
            shared: None,
        },
        router: RouterSpec { key: "model.ffn.moe.router".into(), config },
        capacity: None,
    }
}

/// Where the reference keeps one of our parameters.
enum Place {
    /// The whole tensor.
    Whole(String),
    /// The tensor transposed: a `Linear` stores `[out, in]`, we `[in, out]`.
    Transposed(String),
    /// One of three equal ranges of columns.
    Third(String, usize),
    /// These rows, transposed.
    Rows(String, Range<usize>),
    /// One transposed tensor per expert, first expert first.
    Stacked(Vec<String>),
}

impl Place {
    fn names(self) -> Vec<String> {
        match self {
            Self::Whole(name) | Self::Transposed(name) | Self::Third(name, _) | Self::Rows(name, _) => {
                vec![name]
            }
            Self::Stacked(names) => names,
        }
    }
}

fn llama_place(path: &str) -> Place {
    let Some((layer, part)) = layer_and_part(path) else {
        return match path {
            "embedding.token" => Place::Whole("model.embed_tokens.weight".into()),
            "final_norm.weight" => Place::Whole("model.norm.weight".into()),
            "head" => Place::Transposed("lm_head.weight".into()),
            _ => panic!("no place for {path}"),
        };
    };
    let name = |inner: &str| format!("model.layers.{layer}.{inner}.weight");
    match part {
        "attention_norm.weight" => Place::Whole(name("input_layernorm")),
        "ffn_norm.weight" => Place::Whole(name("post_attention_layernorm")),
        "attention.query_norm.weight" => Place::Whole(name("self_attn.q_norm")),
        "attention.key_norm.weight" => Place::Whole(name("self_attn.k_norm")),
        "attention.query.weight" => Place::Transposed(name("self_attn.q_proj")),
        "attention.key.weight" => Place::Transposed(name("self_attn.k_proj")),
        "attention.value.weight" => Place::Transposed(name("self_attn.v_proj")),
        "attention.output.weight" => Place::Transposed(name("self_attn.o_proj")),
        "ffn.gate.weight" => Place::Transposed(name("mlp.gate_proj")),
        "ffn.up.weight" => Place::Transposed(name("mlp.up_proj")),
        "ffn.down.weight" => Place::Transposed(name("mlp.down_proj")),
        _ => panic!("no place for {path}"),
    }
}

fn mixtral_place(path: &str) -> Place {
    moe_place(path, "block_sparse_moe", 4, ["w1", "w3", "w2"])
}

fn qwen3_place(path: &str) -> Place {
    moe_place(path, "mlp", 8, ["gate_proj", "up_proj", "down_proj"])
}

fn moe_place(path: &str, block: &str, num_experts: usize, [gate, up, down]: [&str; 3]) -> Place {
    let Some((layer, part)) = layer_and_part(path) else { return llama_place(path) };
    let block = format!("model.layers.{layer}.{block}");
    let stacked = |matrix: &str| {
        Place::Stacked((0..num_experts).map(|e| format!("{block}.experts.{e}.{matrix}.weight")).collect())
    };
    match part {
        "ffn.router.weight" => Place::Transposed(format!("{block}.gate.weight")),
        "ffn.experts.gate" => stacked(gate),
        "ffn.experts.up" => stacked(up),
        "ffn.experts.down" => stacked(down),
        _ => llama_place(path),
    }
}

/// GPT-2 stores `[in, out]` as we do, with query, key and value side by side.
fn gpt2_place(path: &str) -> Place {
    let Some((layer, part)) = layer_and_part(path) else {
        return Place::Whole(match path {
            "embedding.token" => "transformer.wte.weight".into(),
            "embedding.position" => "transformer.wpe.weight".into(),
            "final_norm.weight" => "transformer.ln_f.weight".into(),
            "final_norm.bias" => "transformer.ln_f.bias".into(),
            _ => panic!("no place for {path}"),
        });
    };
    let name = |inner: &str| format!("transformer.h.{layer}.{inner}");
    match part {
        "attention.query.weight" => Place::Third(name("attn.c_attn.weight"), 0),
        "attention.key.weight" => Place::Third(name("attn.c_attn.weight"), 1),
        "attention.value.weight" => Place::Third(name("attn.c_attn.weight"), 2),
        "attention.query.bias" => Place::Third(name("attn.c_attn.bias"), 0),
        "attention.key.bias" => Place::Third(name("attn.c_attn.bias"), 1),
        "attention.value.bias" => Place::Third(name("attn.c_attn.bias"), 2),
        "attention.output.weight" => Place::Whole(name("attn.c_proj.weight")),
        "attention.output.bias" => Place::Whole(name("attn.c_proj.bias")),
        "attention_norm.weight" => Place::Whole(name("ln_1.weight")),
        "attention_norm.bias" => Place::Whole(name("ln_1.bias")),
        "ffn_norm.weight" => Place::Whole(name("ln_2.weight")),
        "ffn_norm.bias" => Place::Whole(name("ln_2.bias")),
        "ffn.up.weight" => Place::Whole(name("mlp.c_fc.weight")),
        "ffn.up.bias" => Place::Whole(name("mlp.c_fc.bias")),
        "ffn.down.weight" => Place::Whole(name("mlp.c_proj.weight")),
        "ffn.down.bias" => Place::Whole(name("mlp.c_proj.bias")),
        _ => panic!("no place for {path}"),
    }
}

/// Falcon stores the four query heads, then the key and the value head, as rows of one matrix.
fn falcon_place(path: &str) -> Place {
    let Some((layer, part)) = layer_and_part(path) else {
        return Place::Whole(match path {
            "embedding.token" => "transformer.word_embeddings.weight".into(),
            "final_norm.weight" => "transformer.ln_f.weight".into(),
            "final_norm.bias" => "transformer.ln_f.bias".into(),
            _ => panic!("no place for {path}"),
        });
    };
    let name = |inner: &str| format!("transformer.h.{layer}.{inner}.weight");
    let fused = || name("self_attention.query_key_value");
    match part {
        "attention.query.weight" => Place::Rows(fused(), 0..32),
        "attention.key.weight" => Place::Rows(fused(), 32..40),
        "attention.value.weight" => Place::Rows(fused(), 40..48),
        "attention.output.weight" => Place::Transposed(name("self_attention.dense")),
        "attention_norm.weight" => Place::Whole(name("input_layernorm")),
        "attention_norm.bias" => Place::Whole(format!("transformer.h.{layer}.input_layernorm.bias")),
        "ffn.up.weight" => Place::Transposed(name("mlp.dense_h_to_4h")),
        "ffn.down.weight" => Place::Transposed(name("mlp.dense_4h_to_h")),
        _ => panic!("no place for {path}"),
    }
}

/// `blocks.0.attention.key.bias` is layer `0` and part `attention.key.bias`.
fn layer_and_part(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("blocks.")?.split_once('.')
}

/// The tensors of one safetensors file.
struct TensorFile(Vec<u8>);

impl TensorFile {
    fn names(&self) -> BTreeSet<String> {
        SafeTensors::deserialize(&self.0).unwrap().names().into_iter().map(str::to_string).collect()
    }

    /// Shape and values.
    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let values = view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        (view.shape().to_vec(), values)
    }

    fn scalar(&self, name: &str) -> f64 {
        f64::from(self.floats(name).1[0])
    }

    fn ids(&self, name: &str) -> Vec<i32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::I64, "{name}");
        let chunks = view.data().as_chunks().0.iter();
        chunks.map(|&bytes| i32::try_from(i64::from_le_bytes(bytes)).unwrap()).collect()
    }

    /// The tensor kept at `place`, every name prefixed, with our layout's values.
    fn at(&self, place: &Place, prefix: &str) -> Vec<f32> {
        let transposed = |name: &String| {
            let (shape, values) = self.floats(&format!("{prefix}{name}"));
            let (num_out, num_in) = (shape[0], shape[1]);
            (0..num_in * num_out).map(|at| values[at % num_out * num_in + at / num_out]).collect::<Vec<_>>()
        };
        match place {
            Place::Whole(name) => self.floats(&format!("{prefix}{name}")).1,
            Place::Transposed(name) => transposed(name),
            Place::Rows(name, rows) => {
                let (num_in, values) = (self.floats(&format!("{prefix}{name}")).0[1], transposed(name));
                let num_out = values.len() / num_in;
                values.chunks(num_out).flat_map(|row| row[rows.clone()].to_vec()).collect()
            }
            Place::Stacked(names) => names.iter().flat_map(transposed).collect(),
            Place::Third(name, index) => {
                let (shape, values) = self.floats(&format!("{prefix}{name}"));
                let width = shape[shape.len() - 1];
                let columns = index * width / 3..(index + 1) * width / 3;
                values.chunks(width).flat_map(|row| row[columns.clone()].to_vec()).collect()
            }
        }
    }
}

type Gradients = BTreeMap<String, Vec<f32>>;

/// One reference model: weights, outputs, losses and gradients.
struct Reference {
    weights: TensorFile,
    outputs: TensorFile,
    training: TensorFile,
    place: fn(&str) -> Place,
    device: Device,
}

impl Reference {
    fn open(name: &str, place: fn(&str) -> Place) -> Self {
        let folder = Path::new(FIXTURES).join(name);
        let file = |name: &str| {
            let path = folder.join(name);
            TensorFile(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        };
        Self {
            weights: file("model.safetensors"),
            outputs: file("io.safetensors"),
            training: file("train.safetensors"),
            place,
            device: Device::flex().autodiff(),
        }
    }

    fn check_dense(&self, spec: &ModelSpec) {
        let model = self.transformer(spec);
        self.check_logits(&model);
        let cross_entropy = self.cross_entropy(&model);
        assert_scalar("cross-entropy", &cross_entropy, self.training.scalar("ce_loss"));
        assert_scalar("loss", &cross_entropy, self.training.scalar("loss"));
        self.check_gradients(&gradients_of(&model, cross_entropy), &Gradients::new());
    }

    fn check_moe(&self, spec: &ModelSpec, moe: &MoeSpec) {
        let (num_experts, router) = (moe.experts.num_experts, &moe.router.config);
        let model = self.transformer(spec);
        self.check_logits(&model);
        self.check_layer_balance(&model, num_experts);

        let parts = self.filled(OpenTransformer::new(spec, moe, &self.device));
        let routings = parts.routings(spec, &self.input());
        for (layer, routing) in routings.iter().enumerate() {
            self.check_routing(layer, routing);
        }

        // The reference balances all layers as if they were one, and counts each token k times: its
        // loss is not a function of our layers' losses, but it is k times ours of all the layers'
        // probabilities and counts together.
        let weight = router.load_balancing_weight.unwrap();
        let logits =
            Tensor::cat(routings.iter().map(|routing| routing.logits_te.clone().unwrap()).collect(), 0);
        let counts: Vec<u64> = (0..num_experts)
            .map(|e| routings.iter().map(|routing| routing.tokens_per_expert()[e]).sum())
            .collect();
        let balance = load_balancing_loss(logits, &counts).mul_scalar(router.top_k as f64);
        assert_scalar("load balancing", &balance, self.training.scalar("aux_loss"));
        let cross_entropy = self.cross_entropy(&model);
        assert_scalar("cross-entropy", &cross_entropy, self.training.scalar("ce_loss"));
        let weighted = balance.mul_scalar(weight);
        assert_scalar("loss", &(cross_entropy.clone() + weighted.clone()), self.training.scalar("loss"));
        self.check_gradients(&gradients_of(&model, cross_entropy), &gradients_of(&parts, weighted));
    }

    /// The model with the reference's weights, all of which have a place in it.
    fn transformer(&self, spec: &ModelSpec) -> Transformer {
        let model = self.filled(Transformer::new(spec, 0, &self.device));
        let taken: BTreeSet<String> = parameter_data(&model)
            .iter()
            .flat_map(|param| (self.place)(&param.name.to_string()).names())
            .collect();
        assert_eq!(taken, self.weights.names());
        model
    }

    fn filled<M: Module>(&self, model: M) -> M {
        update_parameters(model, |name, shape, _| {
            let values = self.weights.at(&(self.place)(&name.to_string()), "");
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
            Tensor::from_floats(values.as_slice(), &Device::flex())
        })
    }

    fn input(&self) -> ModelInput {
        let (shape, _) = self.outputs.floats("logits");
        ModelInput::upload(self.outputs.ids("input_ids"), None, [shape[0], shape[1]], &self.device)
    }

    /// Mean cross-entropy of each row's tokens but the first, given those before.
    fn cross_entropy(&self, model: &Transformer) -> Tensor<1> {
        let (shape, _) = self.outputs.floats("logits");
        let (num_sequences, seq_len) = (shape[0], shape[1] - 1);
        let ids = self.outputs.ids("input_ids");
        let shifted =
            |by: usize| ids.chunks(seq_len + 1).flat_map(|row| row[by..by + seq_len].to_vec()).collect();
        let batch = TokenBatch {
            input_ids: shifted(0),
            target_ids: shifted(1),
            segment_ids: None,
            target_mask: None,
            domains: vec![0; num_sequences],
            source_ids_b: vec![0; num_sequences],
            num_sequences,
            seq_len,
        };
        let batch = DeviceBatch::upload(batch, &self.device);
        let output = model.forward(&batch.input, Pass::Evaluation);
        LossParts::new(model, &output, batch.target_ids_t, None).total
    }

    fn check_logits(&self, model: &Transformer) {
        let logits_tv = model.logits(model.forward(&self.input(), Pass::Evaluation).hidden_td);
        assert_close("logits", &values(logits_tv), &self.outputs.floats("logits").1);
    }

    /// The choices, gate logits and gates of one layer.
    fn check_routing(&self, layer: usize, routing: &Routing) {
        let chosen: Vec<i32> =
            routing.choice.expert_ids_tk.iter().map(|&id| i32::try_from(id).unwrap()).collect();
        assert_eq!(chosen, self.outputs.ids(&format!("topk_index.{layer}")), "layer {layer}");
        let logits_te = routing.logits_te.clone().unwrap();
        for (what, actual) in [("router_logits", &logits_te), ("topk_weight", &routing.gates_tk)] {
            let name = format!("{what}.{layer}");
            assert_close(&name, &values(actual.clone()), &self.outputs.floats(&name).1);
        }
    }

    /// Each layer's counts and load-balancing loss, as its equation gives them from the reference's
    /// routing.
    fn check_layer_balance(&self, model: &Transformer, num_experts: usize) {
        let output = model.forward(&self.input(), Pass::training(StepNoise::new(0, 0, 0)));
        assert_eq!(output.moe_layers.len(), model.spec().num_layers());
        for (layer, aux) in &output.moe_layers {
            let chosen = self.outputs.ids(&format!("topk_index.{layer}"));
            let logits_te = self.outputs.floats(&format!("router_logits.{layer}")).1;
            let (mut counts, mut probability_sums) = (vec![0_u64; num_experts], vec![0.0; num_experts]);
            chosen.iter().for_each(|&e| counts[e as usize] += 1);
            for row in logits_te.chunks(num_experts) {
                let partition: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                for (sum, &logit) in probability_sums.iter_mut().zip(row) {
                    *sum += f64::from(logit).exp() / partition;
                }
            }
            let products = counts.iter().zip(&probability_sums).map(|(&count, sum)| count as f64 * sum);
            let scale = num_experts as f64 / (chosen.len() * (logits_te.len() / num_experts)) as f64;
            assert_eq!(aux.statistics.tokens_per_expert(), counts, "layer {layer}");
            let balancing = aux.losses.iter().find(|loss| loss.kind == AuxLossKind::LoadBalancing).unwrap();
            assert_scalar("load balancing of a layer", &balancing.value_1, products.sum::<f64>() * scale);
        }
    }

    /// The sum of two gradients, of which only the second may lack parameters.
    fn check_gradients(&self, gradients: &Gradients, more: &Gradients) {
        let place_names = |path: &String| (self.place)(path).names();
        let compared: BTreeSet<String> = gradients.keys().flat_map(place_names).collect();
        assert_eq!(compared, self.weights.names());
        for (path, gradient) in gradients {
            let place = (self.place)(path);
            let mut sum = gradient.clone();
            for (value, more) in sum.iter_mut().zip(more.get(path).into_iter().flatten()) {
                *value += more;
            }
            assert_close(path, &sum, &self.training.at(&place, "grad."));
        }
    }
}

/// The blocks of a [`Transformer`] taken apart, as that does not return what its routers compute.
/// The fields have its fields' names, so that the same weights fill both.
#[derive(Module, Debug)]
struct OpenTransformer {
    embedding: Embedding,
    blocks: Vec<OpenBlock>,
}

#[derive(Module, Debug)]
struct OpenBlock {
    attention_norm: Norm,
    attention: Attention,
    ffn_norm: Norm,
    ffn: MoeLayer,
}

impl OpenTransformer {
    fn new(spec: &ModelSpec, moe: &MoeSpec, device: &Device) -> Self {
        let source = ParameterSource::new(0, device);
        let (d, e, f) = (spec.d_model, moe.experts.num_experts, moe.experts.d_expert);
        let block = |layer: &LayerSpec| {
            let MixerSpec::Attention(attention) = &layer.mixer;
            let experts = ExpertsWeights {
                w_gate_edf: Some(Tensor::zeros([e, d, f], device)),
                w_up_edf: Tensor::zeros([e, d, f], device),
                w_down_efd: Tensor::zeros([e, f, d], device),
                biases: None,
            };
            let experts = Experts::new(experts, moe.experts.activation);
            OpenBlock {
                attention_norm: Norm::new(spec.norm, d, &source),
                attention: Attention::new(attention, spec, "", &source),
                ffn_norm: Norm::new(spec.norm, d, &source),
                ffn: MoeLayer::new(
                    moe.router.config.init(e, GateWeights::linear(Tensor::zeros([d, e], device))),
                    experts,
                    None,
                    None,
                ),
            }
        };
        Self { embedding: Embedding::new(spec, &source), blocks: spec.layers.iter().map(block).collect() }
    }

    /// What each layer's router computes.
    fn routings(&self, spec: &ModelSpec, input: &ModelInput) -> Vec<Routing> {
        let [_, seq_len] = input.input_ids_bs.dims();
        let device = input.input_ids_bs.device();
        let PositionKind::Rope { theta, .. } = spec.position else { panic!("{:?}", spec.position) };
        let MixerSpec::Attention(attention) = &spec.layers[0].mixer;
        let pairs = 0..attention.d_head / 2;
        let frequencies: Vec<f64> =
            pairs.map(|pair| theta.powf(-2.0 * pair as f64 / attention.d_head as f64)).collect();
        let rotary = RotaryTable::new(seq_len, &frequencies, 1.0, &device);
        let mask = CausalMask::new(seq_len, &device);
        let mut x_td = self.embedding.forward(input.input_ids_bs.clone());
        let mut routings = Vec::new();
        for block in &self.blocks {
            let normed_td = block.attention_norm.forward(x_td.clone());
            x_td = x_td + block.attention.forward(normed_td, Some(&rotary), &mask);
            let normed_td = block.ffn_norm.forward(x_td.clone());
            let pass = RouterPass::Evaluation;
            let router_input = RouterInput { x_td: normed_td.clone(), token_ids_t: &[], seq_len, pass };
            routings.push(block.ffn.router.forward(router_input));
            let layer_input =
                MoeInput { x_td: normed_td, router_x_td: None, token_ids_t: &[], seq_len, pass };
            x_td = x_td + block.ffn.forward(layer_input).hidden_td;
        }
        routings
    }
}

fn gradients_of<M: Module>(model: &M, loss: Tensor<1>) -> Gradients {
    let gradients = parameter_gradients(model, &loss.backward());
    gradients.into_iter().map(|gradient| (gradient.name.to_string(), values(gradient.value))).collect()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec::<f32>().unwrap()
}

#[track_caller]
fn assert_scalar(what: &str, actual: &Tensor<1>, expected: f64) {
    assert_close(what, &values(actual.clone()), &[expected as f32]);
}

#[track_caller]
fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    // A NaN is no maximum of a fold, and would pass.
    assert!(actual.iter().all(|value| value.is_finite()), "{what}: {actual:?}");
    let largest = |values: Vec<f32>| values.into_iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
    let difference = largest(actual.iter().zip(expected).map(|(a, b)| a - b).collect());
    let scale = largest(expected.to_vec());
    let allowed = TOLERANCE * scale.max(SMALLEST_SCALE);
    assert!(difference <= allowed, "{what}: {difference:e} off, of values up to {scale:e}");
}
