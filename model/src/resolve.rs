//! `[model]`: from what is written to what is built.

mod attention;
mod ffn;
mod limits;
mod lstm;
mod parametrisation;
mod position;

use switchyard_ground::key_checks::{below_one, in_range, not_negative, positive};
use switchyard_ground::key_error::KeyError;

use crate::{
    LayerNormConfig, LayerSpec, MixerSpec, ModelConfig, ModelSpec, MultipliersConfig, NormConfig, NormKind,
    Parametrisation, PositionKind, Residual, RmsNormConfig,
};
use limits::{MAX_D_MODEL, MAX_LAYERS};

pub use limits::{MAX_SEQ_LEN, MAX_VOCAB_SIZE};

impl ModelConfig {
    /// The network for a tokenizer's ids and sequences of a length, and notes on keys that hardly
    /// have the intended effect.
    ///
    /// # Errors
    /// The first key under `model` whose value cannot be used.
    pub fn resolve(
        &self,
        num_ids: usize,
        seq_len: usize,
        notes: &mut Vec<String>,
    ) -> Result<ModelSpec, KeyError> {
        in_range("model.num_layers", self.num_layers, 1..=MAX_LAYERS)?;
        in_range("model.d_model", self.d_model, 1..=MAX_D_MODEL)?;
        below_one("model.dropout", self.dropout)?;
        not_negative("model.init.std", self.init.std)?;
        self.check_multipliers()?;
        let (position, mixers) = self.resolve_mixers()?;
        let mut layers: Vec<LayerSpec> = ffn::resolve_ffn(self, seq_len, notes)?
            .into_iter()
            .zip(mixers)
            .map(|(ffn, mixer)| LayerSpec { mixer, ffn, residual: self.residual })
            .collect();
        let parametrisation = parametrisation::resolve_parametrisation(self, &layers)?;
        if let Some(parametrisation) = &parametrisation {
            parametrisation::scale_attention(&mut layers, parametrisation.d_head);
            notes.extend(parametrisation::note_on_size(parametrisation));
            notes.extend(parametrisation::note_on_gates(parametrisation, &layers));
        }
        let vocab_size = self.checked_vocab_size(num_ids)?;
        let spec = ModelSpec {
            vocab_size,
            max_seq_len: seq_len,
            num_positions: self.checked_positions(seq_len)?,
            d_model: self.d_model,
            layers,
            norm: resolve_norm(&self.norm.clone().unwrap_or_default(), self.residual)?,
            position,
            tie_embeddings: self.tie_embeddings,
            dropout: self.dropout,
            init: self.init.clone(),
            multipliers: self.multipliers_of(parametrisation.as_ref()),
            parametrisation,
            head_bias: self.head_bias,
            padding_id: self.checked_padding(vocab_size)?,
        };
        let mixtures = spec.mixture_uses();
        notes.extend(mixtures.iter().filter_map(ffn::note_on_causality));
        ffn::check_capacity(self.ffn.moe.as_ref(), &mixtures, notes)?;
        Ok(spec)
    }

    /// How tokens know their order, and what mixes them in each layer.
    fn resolve_mixers(&self) -> Result<(PositionKind, Vec<MixerSpec>), KeyError> {
        match (&self.attention, &self.lstm) {
            (Some(attention), None) => {
                let position = position::resolve_position(&self.position.clone().unwrap_or_default())?;
                let attentions = attention::resolve_attention(self, attention, &position)?;
                Ok((position, attentions.into_iter().map(MixerSpec::Attention).collect()))
            }
            (None, Some(lstm)) => {
                let lstm = lstm::resolve_lstm(self, lstm)?;
                Ok((PositionKind::Absent, vec![MixerSpec::Lstm(lstm); self.num_layers]))
            }
            (None, None) => {
                let problem = "is missing, and so is `model.lstm`";
                let remedy =
                    "give the table of what mixes tokens, such as [model.attention] with `num_heads`";
                Err(KeyError::new("model.attention", problem, remedy))
            }
            (Some(_), Some(_)) => {
                let problem = "is given beside `model.attention`";
                Err(KeyError::new("model.lstm", problem, "keep one of them"))
            }
        }
    }

    fn check_multipliers(&self) -> Result<(), KeyError> {
        let factors = self.multipliers;
        let factors =
            [("embedding", factors.embedding), ("residual", factors.residual), ("logits", factors.logits)];
        factors.iter().try_for_each(|(key, value)| positive(&format!("model.multipliers.{key}"), *value))
    }

    /// The factors that are written, times those of the parametrisation.
    fn multipliers_of(&self, parametrisation: Option<&Parametrisation>) -> MultipliersConfig {
        let MultipliersConfig { embedding, residual, logits } = self.multipliers;
        match parametrisation {
            Some(parametrisation) => MultipliersConfig {
                embedding,
                residual: residual * parametrisation.residual_multiplier(),
                logits: logits * parametrisation.logits_multiplier(),
            },
            None => self.multipliers,
        }
    }

    fn checked_vocab_size(&self, num_ids: usize) -> Result<usize, KeyError> {
        let Some(vocab_size) = self.vocab_size else { return Ok(num_ids) };
        if !(num_ids..=MAX_VOCAB_SIZE).contains(&vocab_size) {
            let problem = format!("is {vocab_size}, but the tokenizer has {num_ids} ids");
            let remedy = format!("use {num_ids}..={MAX_VOCAB_SIZE}, or remove the key");
            return Err(KeyError::new("model.vocab_size", problem, remedy));
        }
        Ok(vocab_size)
    }

    /// The positions, where they are more than the sequence has.
    fn checked_positions(&self, seq_len: usize) -> Result<Option<usize>, KeyError> {
        let Some(positions) = self.num_positions else { return Ok(None) };
        if !(seq_len..=MAX_SEQ_LEN).contains(&positions) {
            let problem = format!("is {positions}, but `train.seq_len` is {seq_len}");
            let remedy = format!("use {seq_len}..={MAX_SEQ_LEN}, or remove the key");
            return Err(KeyError::new("model.num_positions", problem, remedy).naming("train.seq_len"));
        }
        Ok(Some(positions).filter(|positions| *positions != seq_len))
    }

    fn checked_padding(&self, vocab_size: usize) -> Result<Option<usize>, KeyError> {
        match self.padding_id {
            Some(id) if id >= vocab_size => {
                let problem = format!("is {id}, but the vocabulary has {vocab_size} ids");
                let remedy = format!("use 0..={}, or remove the key", vocab_size - 1);
                Err(KeyError::new("model.padding_id", problem, remedy))
            }
            id => Ok(id),
        }
    }
}

fn resolve_norm(config: &NormConfig, residual: Residual) -> Result<NormKind, KeyError> {
    match *config {
        NormConfig::Rms(RmsNormConfig { epsilon }) => {
            positive("model.norm.rms.epsilon", epsilon)?;
            Ok(NormKind::Rms { epsilon })
        }
        NormConfig::Layer(LayerNormConfig { epsilon, bias }) => {
            positive("model.norm.layer.epsilon", epsilon)?;
            Ok(NormKind::Layer { epsilon, bias })
        }
        NormConfig::Off {} => match residual {
            Residual::Sequential | Residual::Parallel => Ok(NormKind::Off),
            Residual::ParallelNorms | Residual::OutputNorm | Residual::PostNorm => {
                let problem = "says where norms stand, but `model.norm.off` leaves none";
                let remedy = "use `sequential` or `parallel`, or another norm";
                Err(KeyError::new("model.residual", problem, remedy).naming("model.norm"))
            }
        },
    }
}
