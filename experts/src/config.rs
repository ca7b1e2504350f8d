//! What the user writes in `[model.ffn]` about activations, and in `[model.ffn.moe]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use switchyard_ground::key_error::KeyError;
use switchyard_router::{CapacityConfig, RouterConfig};

/// A mixture of experts in place of the dense feed-forward block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// Routed experts in each MoE layer.
    pub num_experts: usize,
    /// Hidden width of one routed expert.
    pub d_expert: usize,
    /// Fine-grained experts as one number (arXiv:2402.07871, section 3; DeepSeekMoE,
    /// arXiv:2401.06066, section 3.1): `num_experts`, `d_expert` and `top_k`, written for 1, become
    /// `granularity` times as many experts of a `granularity`-th of the width, `granularity` times
    /// as many of them per token. Total and active parameters of the experts stay; the router
    /// grows. Absent is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granularity: Option<usize>,
    /// Hidden width of the shared expert that sees every token; absent means none. Several shared
    /// experts of one width are the same function as one of their summed width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub d_shared_expert: Option<usize>,
    /// Weigh the shared expert's output of each token with a sigmoid gate of its own (Qwen2-MoE);
    /// default false.
    #[serde(default)]
    pub shared_expert_gate: bool,
    /// Biases on the projections of the shared expert (ERNIE 4.5); default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared_expert_bias: bool,
    /// Biases on the projections of the routed experts (gpt-oss); default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expert_bias: bool,
    /// How tokens choose experts.
    pub router: RouterConfig,
    /// Other routers for some of the layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub router_overrides: Vec<RouterOverride>,
    /// Limit on tokens per expert; absent is dropless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<CapacityConfig>,
    /// Which layers are MoE; absent means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<MoeLayersConfig>,
}

/// `[[model.ffn.moe.router_overrides]]`: a whole router, in the place of `model.ffn.moe.router`,
/// for some layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouterOverride {
    /// These layers, counted from 0.
    pub layers: Vec<usize>,
    /// How tokens choose experts there.
    pub router: RouterConfig,
}

impl MoeConfig {
    /// The mixture with `granularity` multiplied out; the number itself stays, for people to read.
    ///
    /// # Errors
    /// If the granularity is 0 or does not divide the experts' width, or a router chooses more
    /// experts than there are.
    pub fn with_granularity_applied(&self) -> Result<Self, KeyError> {
        let granularity = self.granularity.unwrap_or(1);
        if granularity == 0 {
            return Err(KeyError::new("granularity", "is 0", "use at least 1, or remove the key"));
        }
        if !self.d_expert.is_multiple_of(granularity) {
            let problem = format!("is {granularity}, which does not divide `d_expert` = {}", self.d_expert);
            return Err(KeyError::new("granularity", problem, "use a divisor").naming("d_expert"));
        }
        // Checked as written: afterwards a message would name numbers that nobody wrote.
        self.check_routers(|router| {
            RouterConfig { renormalise: false, ..RouterConfig::top_k(router.top_k) }
                .validate(self.num_experts)
        })?;
        let mut moe = self.clone();
        moe.num_experts = self.num_experts.saturating_mul(granularity);
        moe.d_expert = self.d_expert / granularity;
        for router in moe.router_overrides.iter_mut().map(|rule| &mut rule.router).chain([&mut moe.router]) {
            router.top_k = router.top_k.saturating_mul(granularity);
        }
        Ok(moe)
    }

    /// `check` of the common router and of every other one, each under its own key.
    fn check_routers(&self, check: impl Fn(&RouterConfig) -> Result<(), KeyError>) -> Result<(), KeyError> {
        check(&self.router).map_err(|error| error.under("router"))?;
        for (index, rule) in self.router_overrides.iter().enumerate() {
            check(&rule.router).map_err(|error| error.under(&format!("router_overrides[{index}].router")))?;
        }
        Ok(())
    }

    /// How tokens of layer `layer` choose experts, if it has any.
    pub fn router_of(&self, layer: usize) -> &RouterConfig {
        self.override_of(layer).map_or(&self.router, |index| &self.router_overrides[index].router)
    }

    /// The key that [`MoeConfig::router_of`] the layer is written under, after `model.ffn.moe.`.
    pub fn router_key_of(&self, layer: usize) -> String {
        self.override_of(layer)
            .map_or_else(|| "router".to_owned(), |index| format!("router_overrides[{index}].router"))
    }

    fn override_of(&self, layer: usize) -> Option<usize> {
        self.router_overrides.iter().position(|rule| rule.layers.contains(&layer))
    }

    /// Checks everything except what depends on the model's layers: which of them are mixtures, and
    /// whether their routers leave something to the capacity.
    ///
    /// # Errors
    /// The first key of the mixture whose value is out of range.
    pub fn validate(&self) -> Result<(), KeyError> {
        let sizes = [
            ("num_experts", Some(self.num_experts), ""),
            ("d_expert", Some(self.d_expert), ""),
            ("d_shared_expert", self.d_shared_expert, ", or remove the key"),
        ];
        for (key, size, alternative) in sizes {
            if size == Some(0) {
                return Err(KeyError::new(key, "is 0", format!("use at least 1{alternative}")));
            }
        }
        let of_shared = [
            ("shared_expert_gate", self.shared_expert_gate),
            ("shared_expert_bias", self.shared_expert_bias),
        ];
        if let Some((key, _)) = of_shared.iter().find(|(_, given)| *given && self.d_shared_expert.is_none()) {
            let problem = "is true, but there is no shared expert";
            let error = KeyError::new(*key, problem, "set `d_shared_expert`, or remove the key");
            return Err(error.naming("d_shared_expert"));
        }
        self.check_routers(|router| router.validate(self.num_experts))?;
        match &self.capacity {
            Some(capacity) => capacity.validate(self.num_experts).map_err(|error| error.under("capacity")),
            None => Ok(()),
        }
    }
}

/// Which layers hold a mixture: exactly one of the two keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MoeLayersConfig {
    /// Every n-th layer is MoE, counting so that the last of each group of n is (Switch uses 2).
    Every(usize),
    /// Exactly these layers, counted from 0.
    List(Vec<usize>),
}

#[cfg(test)]
mod tests {
    use switchyard_router::DropPolicy;

    use super::*;

    fn config() -> MoeConfig {
        let router = RouterConfig { load_balancing_weight: Some(0.01), ..RouterConfig::top_k(2) };
        MoeConfig {
            num_experts: 8,
            d_expert: 16,
            granularity: None,
            d_shared_expert: None,
            shared_expert_gate: false,
            shared_expert_bias: false,
            expert_bias: false,
            router,
            router_overrides: Vec::new(),
            capacity: None,
            layers: None,
        }
    }

    #[test]
    fn each_mistake_names_its_key_value_and_remedy() {
        let message = |config: MoeConfig| config.validate().unwrap_err().to_string();
        assert_eq!(message(MoeConfig { d_expert: 0, ..config() }), "`d_expert` is 0: use at least 1");
        assert_eq!(
            message(MoeConfig { d_shared_expert: Some(0), ..config() }),
            "`d_shared_expert` is 0: use at least 1, or remove the key"
        );
        assert_eq!(
            message(MoeConfig { num_experts: 1, ..config() }),
            "`router.top_k` is 2, but the layer has 1 experts: use 1..=1"
        );
        let capacity = CapacityConfig {
            factor: -1.0,
            factor_per_expert: None,
            drop: DropPolicy::Position,
            evaluation_factor: None,
        };
        assert_eq!(
            message(MoeConfig { capacity: Some(capacity), ..config() }),
            "`capacity.factor` is -1: use a positive number, or remove the table for a dropless layer"
        );
        assert_eq!(config().validate(), Ok(()));
    }
    #[test]
    fn granularity_keeps_what_the_experts_hold_and_what_a_token_uses() {
        let written = MoeConfig { num_experts: 8, d_expert: 48, ..config() };
        for granularity in [1, 2, 4, 8] {
            let moe = MoeConfig { granularity: Some(granularity), ..written.clone() };
            let fine = moe.with_granularity_applied().unwrap();
            assert_eq!((fine.num_experts, fine.router.top_k), (8 * granularity, 2 * granularity));
            assert_eq!(fine.num_experts * fine.d_expert, 8 * 48);
            assert_eq!(fine.router.top_k * fine.d_expert, 2 * 48);
            assert_eq!(fine.validate(), Ok(()));
        }
    }

    #[test]
    fn a_granularity_that_cannot_be_names_its_key() {
        let message = |granularity| {
            let moe = MoeConfig { granularity: Some(granularity), ..config() };
            moe.with_granularity_applied().unwrap_err().to_string()
        };
        assert_eq!(message(0), "`granularity` is 0: use at least 1, or remove the key");
        assert_eq!(message(3), "`granularity` is 3, which does not divide `d_expert` = 16: use a divisor");
        let too_many =
            MoeConfig { num_experts: 1, granularity: Some(2), ..config() }.with_granularity_applied();
        assert_eq!(
            too_many.unwrap_err().to_string(),
            "`router.top_k` is 2, but the layer has 1 experts: use 1..=1"
        );
    }

    #[test]
    fn a_layer_has_the_router_that_names_it_or_the_common_one() {
        let other = RouterOverride { layers: vec![1, 3], router: RouterConfig::top_k(5) };
        let moe = MoeConfig { router_overrides: vec![other], ..config() };
        let top_ks: Vec<usize> = (0..4).map(|layer| moe.router_of(layer).top_k).collect();
        assert_eq!(top_ks, [2, 5, 2, 5]);
        let fine = MoeConfig { granularity: Some(2), ..moe.clone() }.with_granularity_applied().unwrap();
        assert_eq!((fine.router_of(0).top_k, fine.router_of(1).top_k), (4, 10));
        let few = MoeConfig { num_experts: 4, ..moe };
        assert_eq!(
            few.validate().unwrap_err().to_string(),
            "`router_overrides[0].router.top_k` is 5, but the layer has 4 experts: use 1..=4"
        );
    }
}
