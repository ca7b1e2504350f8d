//! The LSTM against torch's nn.LSTM: outputs, states and gradients.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use switchyard_model::{
    InitConfig, LayerSpec, LstmSpec, LstmState, Mixer, MixerSpec, ModelSpec, MultipliersConfig, NormKind,
    ParameterSource, PositionKind, Residual, parameter_gradients, update_parameters,
};

const BATCH: usize = 2;
const STEPS: usize = 5;
const D_MODEL: usize = 3;

/// A model's only layer, its parameters at the places where a model has them.
#[derive(Module, Debug)]
struct Layers {
    blocks: Vec<Layer>,
}

#[derive(Module, Debug)]
struct Layer {
    mixer: Mixer,
}

fn spec(d_hidden: usize) -> ModelSpec {
    let mixer = MixerSpec::Lstm(LstmSpec { d_hidden, forget_bias: 1.0 });
    ModelSpec {
        vocab_size: 2,
        max_seq_len: STEPS,
        num_positions: None,
        d_model: D_MODEL,
        layers: vec![LayerSpec {
            mixer,
            ffn: switchyard_experts::FfnSpec::Absent,
            residual: Residual::Sequential,
        }],
        norm: NormKind::Off,
        position: PositionKind::Absent,
        tie_embeddings: false,
        dropout: 0.0,
        init: InitConfig::default(),
        multipliers: MultipliersConfig::default(),
        parametrisation: None,
        head_bias: false,
        padding_id: None,
    }
}

/// The numbers of torch, by `<case>.<name>`; `fixtures/lstm.py` made them.
fn reference() -> BTreeMap<&'static str, Vec<f32>> {
    let parse = |line: &'static str| {
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        (name, words.filter_map(|number| number.parse().ok()).collect())
    };
    include_str!("fixtures/lstm.txt").lines().map(parse).collect()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex().autodiff())
}

#[track_caller]
fn assert_close<const D: usize>(name: &str, found: Tensor<D>, wanted: &[f32]) {
    let found: Vec<f32> = found.into_data().iter::<f32>().collect();
    assert_eq!(found.len(), wanted.len(), "{name}");
    let largest = wanted.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (found, wanted) in found.iter().zip(wanted) {
        assert!((found - wanted).abs() <= 1e-6 * largest, "{name}: {found}, torch has {wanted}");
    }
}

/// A few roundings of f32 on sums of at most 40 terms; torch computed in f64.
#[test]
fn outputs_states_and_gradients_are_those_of_torch() {
    let reference = reference();
    for (case, h) in [("plain", D_MODEL), ("projected", 5)] {
        let of = |name: &str| reference[format!("{case}.{name}").as_str()].as_slice();
        let source = ParameterSource::new(0, &Device::flex().autodiff());
        let mixer = Mixer::new(&spec(h), 0, "blocks.0", &source);
        let short = |name: &str| name.rsplit('.').next().unwrap().to_owned();
        let layers = update_parameters(Layers { blocks: vec![Layer { mixer }] }, |name, shape, _| {
            let values = of(&short(&name.to_string()));
            assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
            tensor(values, [values.len()]).inner()
        });
        let Mixer::Lstm(lstm) = &layers.blocks[0].mixer else { panic!("an LSTM") };

        let x_td = tensor(of("x"), [BATCH * STEPS, D_MODEL]).require_grad();
        let before = LstmState {
            hidden_bd: tensor(of("hidden"), [BATCH, D_MODEL]).require_grad(),
            cell_bh: tensor(of("cell"), [BATCH, h]).require_grad(),
        };
        let (y_td, after) = lstm.forward(x_td.clone(), STEPS, Some(before.clone()), None);
        assert_close("y", y_td.clone(), of("y"));
        assert_close("last hidden", after.hidden_bd, of("last_hidden"));
        assert_close("last cell", after.cell_bh, of("last_cell"));

        let gradients = (y_td * tensor(of("gradient"), [BATCH * STEPS, D_MODEL])).sum().backward();
        let of_parameters = parameter_gradients(&layers, &gradients);
        assert_eq!(of_parameters.len(), if h == D_MODEL { 3 } else { 4 });
        for gradient in of_parameters {
            let name = format!("d_{}", short(&gradient.name.to_string()));
            assert_close(&name, gradient.value, of(&name));
        }
        assert_close("d_x", x_td.grad(&gradients).unwrap(), of("d_x"));
        assert_close("d_hidden", before.hidden_bd.grad(&gradients).unwrap(), of("d_hidden"));
        assert_close("d_cell", before.cell_bh.grad(&gradients).unwrap(), of("d_cell"));
    }
}
