//! Which part of a block makes the first NaN or infinity.

use burn::tensor::Tensor;
use switchyard_experts::MoeAux;

use super::{Block, BlockContext, FeedForward, FfnInput, Mixed};
use crate::non_finite::is_finite;

impl Block {
    /// The part, and its expert if it is one, whose output is not finite although its input is;
    /// `None` if all is finite.
    pub(crate) fn first_non_finite(
        &self,
        x_td: Tensor<2>,
        context: &BlockContext<'_>,
    ) -> Option<(Option<usize>, String)> {
        let read_td = self.mixer_input(x_td.clone());
        let mixed_td = self.mixer.forward(read_td.clone(), self.layer, context).y_td;
        let mixed = Mixed { read_td, mixed_td };
        if !is_finite(&mixed.mixed_td) {
            return Some((None, format!("the {}'s output", self.mixer.name())));
        }
        let FfnInput { residual_td, normed_td, .. } = self.ffn_input(x_td, mixed, context.pass);
        match self.ffn.as_ref()? {
            FeedForward::Dense(ffn) => (!is_finite(&ffn.forward(normed_td, context.pass.ffn_options())))
                .then(|| (None, "the feed-forward block's output".into())),
            FeedForward::BlockSparse(ffn) => (!is_finite(&ffn.forward(normed_td)))
                .then(|| (None, "the block-sparse feed-forward block's output".into())),
            FeedForward::Moe(moe) => {
                let routed_td = match context.real_places {
                    Some(places) => places.gathered(normed_td.clone()),
                    None => normed_td.clone(),
                };
                let output = self.forward_moe(moe, residual_td, normed_td, context);
                if let Some(fault) = routing_fault(&output.aux) {
                    return Some((None, fault.into()));
                }
                if is_finite(&output.hidden_td) {
                    return None;
                }
                let expert = output.aux.route.and_then(|route| {
                    moe.first_non_finite_expert(&routed_td, &route, context.pass.ffn_options())
                });
                let op = if expert.is_some() { "the expert's output" } else { "the mixture's output" };
                Some((expert, op.into()))
            }
        }
    }
}

/// What of the routing is not finite.
fn routing_fault(aux: &MoeAux) -> Option<&'static str> {
    let logits_are_finite =
        aux.route.as_ref().is_none_or(|route| route.logits_te.iter().all(|logit| logit.is_finite()));
    let is_finite = |value: &Tensor<1>| value.to_data().iter::<f32>().all(f32::is_finite);
    if !logits_are_finite {
        return Some("the router's logits");
    }
    let loss = aux.losses.iter().find(|loss| !is_finite(&loss.value_1))?;
    Some(loss.kind.name())
}
