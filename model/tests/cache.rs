//! What is kept of a sequence's tokens: the scores that follow are the bits of the whole pass.

use burn::tensor::{Device, Tensor};
use switchyard_experts::{
    Activation, BlockSparseConfig, BlockSparseSpec, DenseSpec, ExpertsSpec, FfnSpec, MoeSpec, RouterSpec,
    SharedExpertSpec,
};
use switchyard_model::{
    AttentionBias, AttentionSpec, CachedOutput, DynamicScaling, InitConfig, LatentConfig, LayerSpec,
    LinearScaling, Llama3Scaling, LongropeScaling, LstmSpec, MixerSpec, ModelInput, ModelSpec,
    MultipliersConfig, NormKind, Pass, PositionKind, QkNorm, QkNormConfig, QkNormOver, Residual, RopeScaling,
    SequenceCache, Transformer, YarnScaling,
};
use switchyard_router::{CapacityConfig, DropPolicy, RouterConfig, Selection};

const NUM_TOKENS: usize = 150;
const VOCAB_SIZE: usize = 37;

fn dense() -> FfnSpec {
    FfnSpec::Dense(DenseSpec { activation: Activation::Swiglu, d_ff: 40, bias: false })
}

fn mixture(config: RouterConfig, capacity: Option<CapacityConfig>) -> FfnSpec {
    let shared = SharedExpertSpec { d_expert: 12, is_gated: true, bias: false };
    let experts = ExpertsSpec {
        activation: Activation::Swiglu,
        num_experts: 4,
        d_expert: 16,
        granularity: None,
        bias: true,
        shared: Some(shared),
    };
    FfnSpec::Moe(MoeSpec { experts, router: RouterSpec { key: "router".into(), config }, capacity })
}

fn block_sparse() -> FfnSpec {
    let matrices = BlockSparseConfig { block: 8, d_ff: 32, density: 0.5, seed: 0, topology: None };
    FfnSpec::BlockSparse(BlockSparseSpec { activation: Activation::Swiglu, matrices })
}

fn layer(attention: AttentionSpec, ffn: FfnSpec) -> LayerSpec {
    LayerSpec { mixer: MixerSpec::Attention(attention), ffn, residual: Residual::Sequential }
}

fn plain_attention() -> AttentionSpec {
    AttentionSpec::new(4, 2, 6)
}

fn with(attention: AttentionSpec, ffn: FfnSpec, position: PositionKind) -> ModelSpec {
    ModelSpec {
        vocab_size: VOCAB_SIZE,
        max_seq_len: NUM_TOKENS,
        num_positions: None,
        d_model: 24,
        layers: vec![layer(attention.clone(), ffn.clone()), layer(attention, ffn)],
        norm: NormKind::Rms { epsilon: 1e-5 },
        position,
        tie_embeddings: false,
        dropout: 0.0,
        // Large, so that scores differ.
        init: InitConfig { std: 0.3, scale_residual: false },
        multipliers: MultipliersConfig::default(),
        parametrisation: None,
        head_bias: false,
        padding_id: None,
    }
}

fn plain() -> ModelSpec {
    with(plain_attention(), dense(), PositionKind::rope(10_000.0))
}

fn of_attention(attention: AttentionSpec) -> ModelSpec {
    with(attention, dense(), PositionKind::rope(10_000.0))
}

fn of_position(position: PositionKind) -> ModelSpec {
    with(plain_attention(), dense(), position)
}

fn scaled(scaling: RopeScaling) -> ModelSpec {
    of_position(PositionKind::Rope { theta: 10_000.0, d_rotary: None, scaling: Some(scaling) })
}

fn of_residual(residual: Residual) -> ModelSpec {
    let mut spec = with(plain_attention(), mixture(RouterConfig::top_k(2), None), PositionKind::rope(1e4));
    spec.layers.iter_mut().for_each(|layer| layer.residual = residual);
    spec
}

fn latent(d_query: Option<usize>) -> AttentionSpec {
    let widths = LatentConfig { d_query, d_key_value: 10, d_rope: 4, d_value: 5 };
    AttentionSpec { latent: Some(widths), ..AttentionSpec::new(3, 3, 10) }
}

fn scalings(original_len: usize) -> Vec<(&'static str, ModelSpec)> {
    let longrope = LongropeScaling {
        short_factor: vec![1.0, 1.5, 2.0],
        long_factor: vec![2.0, 3.0, 4.0],
        original_len,
        short_attention_factor: 1.0,
        long_attention_factor: 1.2,
        keeps_short_factor: false,
    };
    vec![
        ("dynamic", scaled(RopeScaling::Dynamic(DynamicScaling { factor: 2.0, original_len }))),
        ("longrope", scaled(RopeScaling::Longrope(longrope))),
    ]
}

fn variants() -> Vec<(&'static str, ModelSpec)> {
    let attention = plain_attention;
    let qk_norm = |over| QkNorm::On(QkNormConfig { over, epsilon: 1e-6 });
    let window = |window| AttentionSpec { window: Some(window), ..attention() };
    let yarn = YarnScaling {
        factor: 4.0,
        original_len: 16,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
    };
    let llama3 = Llama3Scaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_len: 32 };
    let mut with_head = plain();
    with_head.tie_embeddings = true;
    with_head.head_bias = true;
    with_head.multipliers = MultipliersConfig { embedding: 3.0, residual: 0.5, logits: 0.25 };
    with_head.padding_id = Some(3);
    with_head.norm = NormKind::Layer { epsilon: 1e-5, bias: true };
    let mut variants = vec![
        ("plain", plain()),
        ("head", with_head),
        ("one key head", of_attention(AttentionSpec::new(4, 1, 6))),
        ("all key heads", of_attention(AttentionSpec::new(4, 4, 6))),
        ("window of 1", of_attention(window(1))),
        ("window of 20", of_attention(AttentionSpec { sinks: true, ..window(20) })),
        ("window of 100", of_attention(window(100))),
        ("sinks", of_attention(AttentionSpec { sinks: true, bias: AttentionBias::All, ..attention() })),
        ("norm of heads", of_attention(AttentionSpec { qk_norm: qk_norm(QkNormOver::Head), ..attention() })),
        (
            "norm of all",
            of_attention(AttentionSpec { qk_norm: qk_norm(QkNormOver::Projection), ..attention() }),
        ),
        (
            "clip and scale",
            of_attention(AttentionSpec { clip_qkv: Some(0.5), scale: Some(0.7), ..attention() }),
        ),
        ("latent", of_attention(latent(None))),
        ("latent queries", of_attention(AttentionSpec { sinks: true, window: Some(30), ..latent(Some(7)) })),
        ("latent, learned", with(latent(None), dense(), PositionKind::Learned)),
        ("learned", of_position(PositionKind::Learned)),
        ("sinusoidal", of_position(PositionKind::Sinusoidal)),
        ("alibi", of_position(PositionKind::Alibi)),
        ("falcon", of_position(PositionKind::FalconAlibi)),
        ("partial", of_position(PositionKind::Rope { theta: 1e4, d_rotary: Some(2), scaling: None })),
        ("linear", scaled(RopeScaling::Linear(LinearScaling { factor: 4.0 }))),
        ("llama3", scaled(RopeScaling::Llama3(llama3))),
        ("yarn", scaled(RopeScaling::Yarn(yarn))),
        ("block-sparse", with(attention(), block_sparse(), PositionKind::Learned)),
        ("sequential", of_residual(Residual::Sequential)),
        ("parallel", of_residual(Residual::Parallel)),
        ("parallel norms", of_residual(Residual::ParallelNorms)),
        ("output norm", of_residual(Residual::OutputNorm)),
        ("post norm", of_residual(Residual::PostNorm)),
    ];
    variants.extend(scalings(NUM_TOKENS));
    variants.extend([("lstm", lstm(24)), ("projected lstm", lstm(40))]);
    variants
}

/// An LSTM with a mixture behind it, and one alone.
fn lstm(d_hidden: usize) -> ModelSpec {
    let mut spec = with(plain_attention(), mixture(RouterConfig::top_k(2), None), PositionKind::Absent);
    for layer in &mut spec.layers {
        layer.mixer = MixerSpec::Lstm(LstmSpec { d_hidden, forget_bias: 1.0 });
    }
    spec.layers[1].ffn = FfnSpec::Absent;
    spec
}

fn ids() -> Vec<u32> {
    (0..NUM_TOKENS as u32).map(|i| (i * i * 31 + i * 7 + i / 5) % VOCAB_SIZE as u32).collect()
}

fn bits(rows: Tensor<2>) -> Vec<u32> {
    rows.into_data().iter::<f32>().map(f32::to_bits).collect()
}

/// Scores behind each of these tokens, in one pass.
fn whole(model: &Transformer, ids: &[u32]) -> Vec<Vec<u32>> {
    let upload = ids.iter().map(|&id| id as i32).collect();
    let input = ModelInput::upload(upload, None, [1, ids.len()], &Device::default());
    let hidden_td = model.forward(&input, Pass::Generation).hidden_td;
    bits(model.logits(hidden_td)).chunks(VOCAB_SIZE).map(<[u32]>::to_vec).collect()
}

fn next(model: &Transformer, output: CachedOutput) -> (Vec<u32>, Vec<SequenceCache>) {
    (bits(model.logits(output.hidden_bd)), output.caches)
}

#[track_caller]
fn assert_decodes_as_the_whole_pass(name: &str, spec: &ModelSpec) {
    let (model, ids) = (Transformer::new(spec, 5, &Device::default()), ids());
    let all = whole(&model, &ids);
    for (len, rows) in [(1, &all[..1]), (40, &all[..40]), (131, &all[..131])] {
        assert!(whole(&model, &ids[..len]) == rows, "{name}: the pass over {len} tokens");
    }
    for num_prefilled in [1, 67] {
        let prefilled = model.prefill(&ids[..num_prefilled], NUM_TOKENS, &Device::default());
        let (mut scores, mut caches) = next(&model, prefilled);
        for position in num_prefilled..NUM_TOKENS {
            assert!(scores == all[position - 1], "{name}: {num_prefilled} kept, position {}", position - 1);
            assert!(model.can_go_on(&caches[0]), "{name}: position {position}");
            (scores, caches) = next(&model, model.decode(&ids[position..=position], caches));
        }
        assert!(scores == all[NUM_TOKENS - 1] && !model.can_go_on(&caches[0]), "{name}: the last position");
    }
}

#[test]
fn decoding_gives_the_bits_of_the_whole_pass() {
    for (name, spec) in variants() {
        assert_decodes_as_the_whole_pass(name, &spec);
    }
}

#[test]
fn sequences_in_a_batch_have_the_bits_that_they_have_alone() {
    for (name, spec) in variants() {
        let (model, ids) = (Transformer::new(&spec, 5, &Device::default()), ids());
        let starts = [&ids[..5], &ids[20..60], &ids[90..91]];
        let mut together = Vec::new();
        let mut alone = Vec::new();
        for start in starts {
            let (scores, caches) = next(&model, model.prefill(start, 100, &Device::default()));
            let (_, cache) = (scores, caches[0].clone());
            together.push(cache.clone());
            alone.push(next(&model, model.decode(&[7], vec![cache])).0);
        }
        let (scores, caches) = next(&model, model.decode(&[7, 7, 7], together));
        assert!(scores == alone.concat(), "{name}");
        let lengths: Vec<usize> = caches.iter().map(SequenceCache::num_tokens).collect();
        assert_eq!(lengths, [6, 41, 2]);
    }
}

#[test]
fn angles_that_change_with_the_length_end_what_is_kept() {
    for (name, spec) in scalings(50) {
        let model = Transformer::new(&spec, 5, &Device::default());
        let kept = |len: usize| model.prefill(&ids()[..len], NUM_TOKENS, &Device::default()).caches;
        assert!(model.can_go_on(&kept(49)[0]) && !model.can_go_on(&kept(50)[0]), "{name}");
        assert_eq!(model.can_go_on(&kept(51)[0]), name == "longrope");
    }
}

#[test]
fn mixtures_whose_tokens_depend_on_each_other_keep_nothing() {
    let obstacle = |config: RouterConfig, capacity: Option<CapacityConfig>| {
        with(plain_attention(), mixture(config, capacity), PositionKind::Learned).cache_obstacle()
    };
    let capacity = |evaluation_factor| {
        Some(CapacityConfig {
            factor: 1.0,
            factor_per_expert: None,
            evaluation_factor,
            drop: DropPolicy::Position,
        })
    };
    assert_eq!(obstacle(RouterConfig::top_k(2), None), None);
    assert_eq!(obstacle(RouterConfig::top_k(2), capacity(None)), None);
    let shared = obstacle(RouterConfig::top_k(2), capacity(Some(1.0))).unwrap();
    assert!(shared.starts_with("layer 0: its capacity"), "{shared}");
    let random = RouterConfig { selection: Selection::Random {}, ..RouterConfig::top_k(2) };
    assert!(obstacle(random, None).unwrap().contains("place in the pass"));
}
