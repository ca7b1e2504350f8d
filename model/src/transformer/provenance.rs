//! Where the first NaN or infinity of a forward pass arises. Slow, and run only once a loss is not
//! finite.

use super::Transformer;
use crate::non_finite::is_finite;
use crate::{ModelInput, NonFinite, Pass};

impl Transformer {
    /// The first NaN or infinity of the forward pass of `input`, in the order of computation; the
    /// head's loss if there is none before it.
    pub fn first_non_finite(&self, input: &ModelInput, pass: Pass<'_>) -> NonFinite {
        self.in_context(input, pass, |context| {
            let outside = |op: &str| NonFinite { layer: None, expert: None, op: op.into() };
            let mut x_td = self.embed(input, pass);
            if !is_finite(&x_td) {
                return outside("the embedding");
            }
            for (layer, block) in self.blocks.iter().enumerate() {
                let found = block.first_non_finite(x_td.clone(), context);
                if let Some((expert, op)) = found {
                    return NonFinite { layer: Some(layer), expert, op };
                }
                x_td = block.forward(x_td, context).x_td;
            }
            let hidden_td = self.head_input(x_td);
            let place = if is_finite(&hidden_td) { "the head's loss" } else { "the final norm" };
            outside(place)
        })
    }
}
