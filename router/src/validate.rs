//! Which configurations of a router and of a capacity make sense.

use switchyard_ground::key_error::KeyError;

use crate::{
    BalancingScope, BiasRule, CapacityConfig, ExpertGroups, RouterConfig, Selection, SinkhornConfig,
    SoftmaxOrder,
};

const WITHOUT_LOSS: &str = ", or remove the key to turn the loss off";

impl RouterConfig {
    /// Checks what does not depend on the rest of the model.
    ///
    /// # Errors
    /// The first key of the router whose value is out of range or does not fit the others.
    pub fn validate(&self, num_experts: usize) -> Result<(), KeyError> {
        if !(1..=num_experts).contains(&self.top_k) {
            let problem = format!("is {}, but the layer has {num_experts} experts", self.top_k);
            return Err(KeyError::new("top_k", problem, format!("use 1..={num_experts}")));
        }
        self.validate_numbers()?;
        self.validate_selection(num_experts)?;
        self.validate_bias()?;
        self.validate_token_rounding()?;
        match &self.groups {
            Some(groups) => validate_groups(groups, self.top_k, num_experts),
            None => Ok(()),
        }
    }

    fn validate_numbers(&self) -> Result<(), KeyError> {
        if let Some(jitter) = self.jitter.filter(|jitter| !(*jitter > 0.0 && *jitter < 1.0)) {
            let remedy = "use a number between 0 and 1, or remove the key to turn jitter off";
            return Err(KeyError::new("jitter", format!("is {jitter}"), remedy));
        }
        positive("init_scale", Some(self.init_scale), "")?;
        positive("load_balancing_weight", self.load_balancing_weight, WITHOUT_LOSS)?;
        positive("z_loss_weight", self.z_loss_weight, WITHOUT_LOSS)?;
        if let Some(weight) = self.entropy_weight.filter(|weight| !weight.is_finite() || *weight == 0.0) {
            let remedy = format!("use a number other than 0{WITHOUT_LOSS}");
            return Err(KeyError::new("entropy_weight", format!("is {weight}"), remedy));
        }
        positive("routed_scaling", Some(self.routed_scaling), "")?;
        positive("sigmoid.routed_scaling", self.sigmoid.as_ref().map(|s| s.routed_scaling), "")?;
        positive("cosine.temperature", self.cosine.as_ref().map(|c| c.temperature), "")?;
        match &self.cosine {
            Some(cosine) if cosine.d_projection == 0 => Err(zero("cosine.d_projection", "")),
            _ => Ok(()),
        }
    }

    fn validate_selection(&self, num_experts: usize) -> Result<(), KeyError> {
        self.validate_effect()?;
        self.validate_gradient(num_experts)?;
        match &self.selection {
            Selection::Noisy(noisy) => {
                positive("selection.noisy.importance_weight", noisy.importance_weight, WITHOUT_LOSS)?;
                positive("selection.noisy.load_weight", noisy.load_weight, WITHOUT_LOSS)
            }
            Selection::RandomSecond(_) if self.top_k != 2 => {
                let problem = format!("needs two experts per token, but `top_k` is {}", self.top_k);
                let remedy = "set it to 2, or remove the table";
                Err(KeyError::new("selection.random_second", problem, remedy).naming("top_k"))
            }
            Selection::SparseMixer(_) if self.top_k != 2 => {
                let problem = format!("needs two experts per token, but `top_k` is {}", self.top_k);
                let remedy = "set it to 2, or remove the table";
                Err(KeyError::new("selection.sparse_mixer", problem, remedy).naming("top_k"))
            }
            Selection::SparseMixer(config) => {
                positive("selection.sparse_mixer.jitter", Some(config.jitter), "")
            }
            Selection::Sinkhorn(SinkhornConfig { max_iterations: 0, .. }) => {
                Err(zero("selection.sinkhorn.max_iterations", ""))
            }
            Selection::Sinkhorn(sinkhorn) => {
                positive("selection.sinkhorn.temperature", Some(sinkhorn.temperature), "")?;
                positive("selection.sinkhorn.tolerance", Some(sinkhorn.tolerance), "")
            }
            Selection::ExpertChoice(choice) => {
                positive("selection.expert_choice.capacity_factor", Some(choice.capacity_factor), "")
            }
            Selection::Soft(soft) if soft.slots_per_expert == Some(0) => {
                Err(zero("selection.soft.slots_per_expert", ", or remove the key"))
            }
            _ => Ok(()),
        }
    }

    /// A key that changes nothing must not be there: the run would not be the one that is written
    /// down.
    fn validate_effect(&self) -> Result<(), KeyError> {
        let given = [
            ("load_balancing_weight", self.load_balancing_weight.is_some()),
            ("z_loss_weight", self.z_loss_weight.is_some()),
            ("entropy_weight", self.entropy_weight.is_some()),
            ("jitter", self.jitter.is_some()),
            ("bias", self.bias.is_some()),
            ("token_rounding", self.token_rounding.is_some()),
            ("groups", self.groups.is_some()),
            ("sigmoid", self.sigmoid.is_some()),
            ("cosine", self.cosine.is_some()),
            ("softmax", self.softmax == SoftmaxOrder::AfterSelection),
            ("gate_bias", self.gate_bias),
            ("routed_scaling", self.routed_scaling != 1.0),
        ];
        let (keys, reason) = self.selection.without_effect();
        let mut idle = given.iter().filter(|(key, given)| *given && keys.contains(key));
        if let Some((key, _)) = idle.next() {
            return Err(KeyError::new(*key, reason, "remove it, or `selection`").naming("selection"));
        }
        if self.gate_bias && self.cosine.is_some() {
            let problem = "is true, but a cosine gate has no bias";
            return Err(KeyError::new("gate_bias", problem, "remove it, or `cosine`").naming("cosine"));
        }
        if self.routed_scaling != 1.0 && self.sigmoid.is_some() {
            let problem = format!("is {}, which has no effect on sigmoid scores", self.routed_scaling);
            let error = KeyError::new("routed_scaling", problem, "set `sigmoid.routed_scaling` instead");
            return Err(error.naming("sigmoid"));
        }
        if self.softmax == SoftmaxOrder::AfterSelection && self.sigmoid.is_some() {
            let problem = "is \"after_selection\", which has no effect on sigmoid scores";
            return Err(KeyError::new("softmax", problem, "remove it, or `sigmoid`").naming("sigmoid"));
        }
        if self.load_balancing_scope == BalancingScope::AllLayers && self.sigmoid.is_some() {
            let problem = "is \"all_layers\", which goes by the softmax of the logits, not by sigmoid scores";
            let error = KeyError::new("load_balancing_scope", problem, "use another scope");
            return Err(error.naming("sigmoid"));
        }
        if self.load_balancing_scope != BalancingScope::MicroBatch && self.load_balancing_weight.is_none() {
            let problem = "has no effect without `load_balancing_weight`";
            let error = KeyError::new("load_balancing_scope", problem, "set that, or remove it");
            return Err(error.naming("load_balancing_weight"));
        }
        Ok(())
    }

    /// One renormalised gate is always 1: the router would never get a gradient from the model's
    /// loss.
    fn validate_gradient(&self, num_experts: usize) -> Result<(), KeyError> {
        let one_gate = self.top_k == 1 && num_experts > 1;
        let takes_one = !matches!(self.selection, Selection::ExpertChoice(_) | Selection::Soft(_));
        if !(one_gate && takes_one && self.learns()) || self.constant_gate {
            return Ok(());
        }
        let (key, value, remedy) = match (self.softmax, self.renormalise) {
            (SoftmaxOrder::AfterSelection, _) => {
                ("softmax", "\"after_selection\"", "use \"before_selection\"")
            }
            (SoftmaxOrder::BeforeSelection, true) => ("renormalise", "true", "use false"),
            (SoftmaxOrder::BeforeSelection, false) => return Ok(()),
        };
        let problem = format!(
            "is {value} with `top_k = 1`, which makes the only gate of each token 1, so that the router would not learn \
             from the model's loss"
        );
        Err(KeyError::new(key, problem, remedy))
    }

    fn validate_token_rounding(&self) -> Result<(), KeyError> {
        let Some(rounding) = &self.token_rounding else { return Ok(()) };
        if self.groups.is_some() {
            let problem = "cannot go with groups: a token that an expert adds may have other groups";
            return Err(KeyError::new("token_rounding", problem, "remove it, or `groups`").naming("groups"));
        }
        if rounding.tile < 2 {
            let problem = format!("is {}, which rounds nothing", rounding.tile);
            return Err(KeyError::new("token_rounding.tile", problem, "use at least 2, or remove the table"));
        }
        Ok(())
    }

    fn validate_bias(&self) -> Result<(), KeyError> {
        match &self.bias {
            Some(BiasRule::Sign(config)) => positive("bias.sign.rate", Some(config.rate), ""),
            Some(BiasRule::Proportional(config)) => positive("bias.proportional.rate", Some(config.rate), ""),
            Some(BiasRule::Quantile {}) if self.groups.is_some() => {
                let problem = "cannot balance experts that compete within groups";
                Err(KeyError::new("bias.quantile", problem, "remove it, or `groups`").naming("groups"))
            }
            Some(BiasRule::Quantile {} | BiasRule::Fixed {}) | None => Ok(()),
        }
    }
}

impl Selection {
    /// Keys under `router` that change nothing, or not what they should, and why.
    fn without_effect(&self) -> (&'static [&'static str], &'static str) {
        const IDLE: &str = "has no effect on this selection";
        match self {
            Self::TopK => (&[], IDLE),
            Self::Noisy(_) => {
                (&["bias", "groups", "sigmoid", "token_rounding"], "does not go with noisy gating")
            }
            Self::RandomSecond(_) | Self::Sinkhorn(_) => (&["bias", "groups", "token_rounding"], IDLE),
            Self::SparseMixer(_) => (&["bias", "groups", "sigmoid", "softmax", "token_rounding"], IDLE),
            Self::ExpertChoice(_) => (
                &["bias", "groups", "softmax", "load_balancing_weight", "token_rounding"],
                "has no effect where experts take equally many tokens by their own scores",
            ),
            Self::Soft(_) => (
                &[
                    "load_balancing_weight",
                    "z_loss_weight",
                    "entropy_weight",
                    "bias",
                    "groups",
                    "token_rounding",
                    "sigmoid",
                    "cosine",
                    "softmax",
                    "gate_bias",
                    "routed_scaling",
                ],
                "has no effect on soft mixing, which selects nothing",
            ),
            Self::Hash(_) | Self::Random {} | Self::ForcedUniform {} => (
                &[
                    "load_balancing_weight",
                    "z_loss_weight",
                    "entropy_weight",
                    "jitter",
                    "bias",
                    "groups",
                    "token_rounding",
                    "sigmoid",
                    "cosine",
                    "softmax",
                    "gate_bias",
                    "routed_scaling",
                ],
                "has no effect, because the selection learns nothing",
            ),
        }
    }
}

impl CapacityConfig {
    /// Checks the factors.
    ///
    /// # Errors
    /// The first key of the capacity that is not a positive number, or does not have one factor per
    /// expert.
    pub fn validate(&self, num_experts: usize) -> Result<(), KeyError> {
        positive("factor", Some(self.factor), ", or remove the table for a dropless layer")?;
        positive("evaluation_factor", self.evaluation_factor, ", or remove the key to evaluate dropless")?;
        self.validate_factors(num_experts)
    }

    /// Checks that the selection of the router written under `router_key` leaves something to a
    /// capacity.
    ///
    /// # Errors
    /// If it decides by itself how many tokens an expert takes, or rounds them.
    pub fn validate_selection(&self, router: &RouterConfig, router_key: &str) -> Result<(), KeyError> {
        if router.token_rounding.is_some() {
            let problem = format!("would empty the tiles that `{router_key}.token_rounding` fills");
            return Err(KeyError::new("", problem, format!("remove it, or `{router_key}.token_rounding`")));
        }
        let (reason, key) = match &router.selection {
            Selection::ExpertChoice(_) => {
                ("where experts take their tokens", "expert_choice.capacity_factor")
            }
            Selection::Soft(_) => ("on soft mixing", "soft.slots_per_expert"),
            _ => return Ok(()),
        };
        let remedy = format!("remove it, and set `{router_key}.selection.{key}`");
        Err(KeyError::new("", format!("has no effect {reason}"), remedy))
    }

    fn validate_factors(&self, num_experts: usize) -> Result<(), KeyError> {
        let Some(factors) = &self.factor_per_expert else { return Ok(()) };
        if factors.len() != num_experts {
            let problem = format!("has {} factors, but the layer has {num_experts} experts", factors.len());
            return Err(KeyError::new("factor_per_expert", problem, "give one for each"));
        }
        factors.iter().try_for_each(|&factor| positive("factor_per_expert", Some(factor), ""))
    }
}

fn validate_groups(groups: &ExpertGroups, top_k: usize, num_experts: usize) -> Result<(), KeyError> {
    let ExpertGroups { num_groups, top_groups, .. } = *groups;
    if num_groups == 0 || !num_experts.is_multiple_of(num_groups) {
        let problem = format!("is {num_groups}, which does not divide {num_experts} experts");
        return Err(KeyError::new("groups.num_groups", problem, "use a divisor"));
    }
    let per_group = num_experts / num_groups;
    if !(1..=num_groups).contains(&top_groups) || top_groups * per_group < top_k {
        let remedy = format!(
            "of {num_groups} groups of {per_group} experts, use at least {} and at most {num_groups}",
            top_k.div_ceil(per_group)
        );
        return Err(KeyError::new("groups.top_groups", format!("is {top_groups}"), remedy));
    }
    Ok(())
}

fn positive(key: &str, value: Option<f64>, alternative: &str) -> Result<(), KeyError> {
    match value {
        Some(value) if !(value.is_finite() && value > 0.0) => {
            Err(KeyError::new(key, format!("is {value}"), format!("use a positive number{alternative}")))
        }
        _ => Ok(()),
    }
}

fn zero(key: &str, alternative: &str) -> KeyError {
    KeyError::new(key, "is 0", format!("use at least 1{alternative}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DropPolicy;

    use RouterConfig as Config;

    /// The message for a layer of 8 experts, without the backtick that all messages begin with.
    #[track_caller]
    fn message(router: &str) -> String {
        let config: Config = serde_json::from_str(router).unwrap();
        let error = config.validate(8).unwrap_err().to_string();
        error.strip_prefix('`').unwrap().to_string()
    }

    /// Checks each router's message.
    #[track_caller]
    fn assert_refused(cases: &[(&str, &str)]) {
        for (router, expected) in cases {
            assert_eq!(message(router), *expected, "{router}");
        }
    }

    #[test]
    fn a_number_out_of_range_names_its_key_value_and_remedy() {
        assert_refused(&[
            (r#"{"top_k": 9}"#, "top_k` is 9, but the layer has 8 experts: use 1..=8"),
            (r#"{"top_k": 0}"#, "top_k` is 0, but the layer has 8 experts: use 1..=8"),
            (
                r#"{"top_k": 2, "jitter": 1.5}"#,
                "jitter` is 1.5: use a number between 0 and 1, or remove the key to turn jitter off",
            ),
            (
                r#"{"top_k": 2, "z_loss_weight": -0.1}"#,
                "z_loss_weight` is -0.1: use a positive number, or remove the key to turn the loss off",
            ),
            (
                r#"{"top_k": 2, "load_balancing_weight": 0}"#,
                "load_balancing_weight` is 0: use a positive number, or remove the key to turn the loss off",
            ),
            (
                r#"{"top_k": 2, "entropy_weight": 0}"#,
                "entropy_weight` is 0: use a number other than 0, or remove the key to turn the loss off",
            ),
            (r#"{"top_k": 2, "init_scale": 0}"#, "init_scale` is 0: use a positive number"),
            (
                r#"{"top_k": 2, "sigmoid": {"routed_scaling": -1}}"#,
                "sigmoid.routed_scaling` is -1: use a positive number",
            ),
            (r#"{"top_k": 2, "cosine": {"d_projection": 0}}"#, "cosine.d_projection` is 0: use at least 1"),
            (
                r#"{"top_k": 2, "cosine": {"d_projection": 4, "temperature": 0}}"#,
                "cosine.temperature` is 0: use a positive number",
            ),
            (
                r#"{"top_k": 2, "selection": {"noisy": {"load_weight": -1}}}"#,
                "selection.noisy.load_weight` is -1: use a positive number, or remove the key to turn the loss off",
            ),
            (
                r#"{"top_k": 2, "selection": {"sinkhorn": {"max_iterations": 0}}}"#,
                "selection.sinkhorn.max_iterations` is 0: use at least 1",
            ),
            (
                r#"{"top_k": 2, "selection": {"sinkhorn": {"temperature": 0}}}"#,
                "selection.sinkhorn.temperature` is 0: use a positive number",
            ),
            (
                r#"{"top_k": 2, "selection": {"expert_choice": {"capacity_factor": 0}}}"#,
                "selection.expert_choice.capacity_factor` is 0: use a positive number",
            ),
            (
                r#"{"top_k": 2, "selection": {"soft": {"slots_per_expert": 0}}}"#,
                "selection.soft.slots_per_expert` is 0: use at least 1, or remove the key",
            ),
            (r#"{"top_k": 2, "bias": {"sign": {"rate": 0}}}"#, "bias.sign.rate` is 0: use a positive number"),
            (
                r#"{"top_k": 2, "bias": {"proportional": {"rate": -0.5}}}"#,
                "bias.proportional.rate` is -0.5: use a positive number",
            ),
        ]);
        let nan = Config { load_balancing_weight: Some(f64::NAN), ..Config::top_k(2) };
        assert!(nan.validate(8).unwrap_err().to_string().contains("is NaN: use a positive number"));
        assert!(Config::top_k(8).validate(8).is_ok());
    }

    #[test]
    fn groups_that_do_not_fit_name_what_would() {
        assert_refused(&[
            (
                r#"{"top_k": 2, "groups": {"num_groups": 3, "top_groups": 1}}"#,
                "groups.num_groups` is 3, which does not divide 8 experts: use a divisor",
            ),
            (
                r#"{"top_k": 2, "groups": {"num_groups": 0, "top_groups": 1}}"#,
                "groups.num_groups` is 0, which does not divide 8 experts: use a divisor",
            ),
            (
                r#"{"top_k": 5, "groups": {"num_groups": 4, "top_groups": 2}}"#,
                "groups.top_groups` is 2: of 4 groups of 2 experts, use at least 3 and at most 4",
            ),
            (
                r#"{"top_k": 1, "renormalise": false, "groups": {"num_groups": 4, "top_groups": 5}}"#,
                "groups.top_groups` is 5: of 4 groups of 2 experts, use at least 1 and at most 4",
            ),
            (
                r#"{"top_k": 2, "groups": {"num_groups": 4, "top_groups": 2}, "bias": {"quantile": {}}}"#,
                "bias.quantile` cannot balance experts that compete within groups: remove it, or \
                 `groups`",
            ),
        ]);
    }

    #[test]
    fn a_router_that_would_not_learn_from_the_models_loss_is_refused() {
        let renormalised = "renormalise` is true with `top_k = 1`, which makes the only gate of each token 1, so that \
                            the router would not learn from the model's loss: use false";
        let after_selection = "softmax` is \"after_selection\" with `top_k = 1`, which makes the only gate of each token \
                               1, so that the router would not learn from the model's loss: use \"before_selection\"";
        assert_refused(&[
            (r#"{"top_k": 1}"#, renormalised),
            (r#"{"top_k": 1, "sigmoid": {}}"#, renormalised),
            (r#"{"top_k": 1, "softmax": "after_selection"}"#, after_selection),
        ]);
        // Where nothing is learned, or more than one gate counts, there is nothing to refuse.
        for router in [
            r#"{"top_k": 1, "renormalise": false}"#,
            r#"{"top_k": 1, "selection": {"hash": {}}}"#,
            r#"{"top_k": 1, "selection": {"expert_choice": {}}}"#,
            r#"{"top_k": 1, "selection": {"soft": {}}}"#,
        ] {
            let config: Config = serde_json::from_str(router).unwrap();
            assert_eq!(config.validate(8), Ok(()), "{router}");
        }
        assert_eq!(Config::top_k(1).validate(1), Ok(()));
    }

    #[test]
    fn a_key_without_effect_is_refused() {
        const UNLEARNED: &str = "has no effect, because the selection learns nothing: remove it, or \
                                 `selection`";
        for selection in ["hash", "random", "forced_uniform"] {
            for key in [
                r#""bias": {"sign": {}}"#,
                r#""token_rounding": {}"#,
                r#""groups": {"num_groups": 2, "top_groups": 1}"#,
                r#""load_balancing_weight": 0.1"#,
                r#""z_loss_weight": 0.1"#,
                r#""entropy_weight": 0.1"#,
                r#""jitter": 0.1"#,
                r#""sigmoid": {}"#,
                r#""cosine": {"d_projection": 4}"#,
                r#""softmax": "after_selection""#,
            ] {
                let name = key.split('"').nth(1).unwrap();
                let router = format!(r#"{{"top_k": 2, "selection": {{"{selection}": {{}}}}, {key}}}"#);
                assert_eq!(message(&router), format!("{name}` {UNLEARNED}"));
            }
        }
        assert_refused(&[
            (
                r#"{"top_k": 2, "selection": {"sinkhorn": {}}, "bias": {"sign": {}}}"#,
                "bias` has no effect on this selection: remove it, or `selection`",
            ),
            (
                r#"{"top_k": 2, "selection": {"noisy": {}}, "sigmoid": {}}"#,
                "sigmoid` does not go with noisy gating: remove it, or `selection`",
            ),
            (
                r#"{"top_k": 2, "selection": {"expert_choice": {}}, "load_balancing_weight": 0.01}"#,
                "load_balancing_weight` has no effect where experts take equally many tokens by their own scores: \
                 remove it, or `selection`",
            ),
            (
                r#"{"top_k": 2, "selection": {"soft": {}}, "z_loss_weight": 0.01}"#,
                "z_loss_weight` has no effect on soft mixing, which selects nothing: remove it, or \
                 `selection`",
            ),
            (
                r#"{"top_k": 2, "softmax": "after_selection", "sigmoid": {}}"#,
                "softmax` is \"after_selection\", which has no effect on sigmoid scores: remove it, or \
                 `sigmoid`",
            ),
            (
                r#"{"top_k": 2, "load_balancing_scope": "global_batch"}"#,
                "load_balancing_scope` has no effect without `load_balancing_weight`: set that, \
                 or remove it",
            ),
            (
                r#"{"top_k": 3, "selection": {"random_second": {}}}"#,
                "selection.random_second` needs two experts per token, but `top_k` is 3: set it \
                 to 2, or remove the table",
            ),
        ]);
    }

    #[test]
    fn token_rounding_is_for_the_best_of_each_token_alone() {
        assert_refused(&[
            (
                r#"{"top_k": 2, "selection": {"expert_choice": {}}, "token_rounding": {"tile": 8}}"#,
                "token_rounding` has no effect where experts take equally many tokens by their own scores: \
                 remove it, or `selection`",
            ),
            (
                r#"{"top_k": 2, "selection": {"soft": {}}, "token_rounding": {}}"#,
                "token_rounding` has no effect on soft mixing, which selects nothing: remove it, or \
                 `selection`",
            ),
            (
                r#"{"top_k": 2, "selection": {"noisy": {}}, "token_rounding": {}}"#,
                "token_rounding` does not go with noisy gating: remove it, or `selection`",
            ),
            (
                r#"{"top_k": 2, "selection": {"sparse_mixer": {}}, "token_rounding": {}}"#,
                "token_rounding` has no effect on this selection: remove it, or `selection`",
            ),
            (
                r#"{"top_k": 2, "groups": {"num_groups": 2, "top_groups": 1}, "token_rounding": {}}"#,
                "token_rounding` cannot go with groups: a token that an expert adds may have other groups: \
                 remove it, or `groups`",
            ),
            (
                r#"{"top_k": 2, "token_rounding": {"tile": 1}}"#,
                "token_rounding.tile` is 1, which rounds nothing: use at least 2, or remove the table",
            ),
        ]);
    }

    #[test]
    fn a_misspelt_key_is_no_configuration() {
        for router in [
            r#"{"top_K": 2}"#,
            r#"{"top_k": 2, "selection": {"hash": {"sed": 1}}}"#,
            r#"{"top_k": 2, "selection": {"random": {"seed": 1}}}"#,
            r#"{"top_k": 2, "bias": {"sign": {"speed": 1}}}"#,
            r#"{"top_k": 2, "bias": {"quantile": {"rate": 1}}}"#,
            r#"{"top_k": 2, "selection": {"hahs": {}}}"#,
            r#"{"top_k": 2, "selection": {"top_k": {}}}"#,
        ] {
            assert!(serde_json::from_str::<Config>(router).is_err(), "{router}");
        }
    }

    #[test]
    fn a_choice_is_exactly_one_table_and_is_written_as_it_was_read() {
        for router in [
            r#"{"top_k": 2, "selection": {}}"#,
            r#"{"top_k": 2, "selection": {"random": {}, "hash": {}}}"#,
            r#"{"top_k": 2, "bias": {}}"#,
            r#"{"top_k": 2, "bias": {"sign": {}, "quantile": {}}}"#,
        ] {
            assert!(serde_json::from_str::<Config>(router).is_err(), "{router}");
        }
        for (router, selection) in [
            (r#"{"top_k": 2}"#, None),
            (r#"{"top_k": 2, "selection": {"random": {}}}"#, Some(r#"{"random":{}}"#)),
            (r#"{"top_k": 2, "selection": {"hash": {}}}"#, Some(r#"{"hash":{"seed":0}}"#)),
        ] {
            let config: Config = serde_json::from_str(router).unwrap();
            let written = serde_json::to_value(&config).unwrap();
            assert_eq!(written.get("selection").map(ToString::to_string).as_deref(), selection);
            assert_eq!(serde_json::from_value::<Config>(written).unwrap(), config);
        }
    }

    fn capacity(factor: f64) -> CapacityConfig {
        CapacityConfig {
            factor,
            factor_per_expert: None,
            drop: DropPolicy::Position,
            evaluation_factor: None,
        }
    }

    #[test]
    fn a_capacity_fits_the_experts_and_the_selection() {
        let message = |capacity: &CapacityConfig| capacity.validate(8).unwrap_err().to_string();
        let of_three = CapacityConfig { factor_per_expert: Some(vec![1.0; 3]), ..capacity(1.0) };
        assert_eq!(
            message(&of_three),
            "`factor_per_expert` has 3 factors, but the layer has 8 experts: give one for each"
        );
        let one_negative = CapacityConfig {
            factor_per_expert: Some(vec![1.0, 1.0, -2.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
            ..capacity(1.0)
        };
        assert_eq!(message(&one_negative), "`factor_per_expert` is -2: use a positive number");
        let evaluation = CapacityConfig { evaluation_factor: Some(0.0), ..capacity(1.0) };
        assert_eq!(
            message(&evaluation),
            "`evaluation_factor` is 0: use a positive number, or remove the key to evaluate \
             dropless"
        );
        let with = |selection: &str| {
            let router = format!(r#"{{"top_k": 2, "selection": {{"{selection}": {{}}}}}}"#);
            capacity(1.0).validate_selection(&serde_json::from_str(&router).unwrap(), "model.ffn.moe.router")
        };
        assert_eq!(with("hash"), Ok(()));
        let rounding: Config = serde_json::from_str(r#"{"top_k": 2, "token_rounding": {}}"#).unwrap();
        let message = capacity(1.0).validate_selection(&rounding, "r").unwrap_err().to_string();
        assert!(message.contains("would empty the tiles that `r.token_rounding` fills"), "{message}");
        for (selection, key) in [("expert_choice", "capacity_factor"), ("soft", "slots_per_expert")] {
            let message = with(selection).unwrap_err().to_string();
            assert!(message.starts_with("has no effect"), "{message}");
            assert!(message.contains(&format!("selection.{selection}.{key}")), "{message}");
        }
    }

    #[test]
    fn a_capacity_factor_must_be_positive() {
        assert_eq!(
            capacity(0.0).validate(8).unwrap_err().to_string(),
            "`factor` is 0: use a positive number, or remove the table for a dropless layer"
        );
        assert!(capacity(f64::INFINITY).validate(8).is_err());
        assert!(capacity(1.25).validate(8).is_ok());
    }
}
