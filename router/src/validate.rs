//! Which configurations of a router and of a capacity make sense.

use crate::{
    BalancingScope, BiasRule, CapacityConfig, ExpertGroups, RouterConfig, RouterError, Selection,
    SinkhornConfig, SoftmaxOrder,
};

const WITHOUT_LOSS: &str = ", or remove the key to turn the loss off";

impl RouterConfig {
    /// Checks what does not depend on the rest of the model.
    ///
    /// # Errors
    /// Names the first key under `model.ffn.moe.router` whose value is out of range or does not fit the others.
    pub fn validate(&self, num_experts: usize) -> Result<(), RouterError> {
        if !(1..=num_experts).contains(&self.top_k) {
            let problem =
                format!("is {}, but the layer has {num_experts} experts: use 1..={num_experts}", self.top_k);
            return Err(RouterError::new("router.top_k", problem));
        }
        self.validate_numbers()?;
        self.validate_selection(num_experts)?;
        self.validate_bias()?;
        match &self.groups {
            Some(groups) => validate_groups(groups, self.top_k, num_experts),
            None => Ok(()),
        }
    }

    fn validate_numbers(&self) -> Result<(), RouterError> {
        if let Some(jitter) = self.jitter.filter(|jitter| !(*jitter > 0.0 && *jitter < 1.0)) {
            let problem =
                format!("is {jitter}: use a number between 0 and 1, or remove the key to turn jitter off");
            return Err(RouterError::new("router.jitter", problem));
        }
        positive("router.init_scale", Some(self.init_scale), "")?;
        positive("router.load_balancing_weight", self.load_balancing_weight, WITHOUT_LOSS)?;
        positive("router.z_loss_weight", self.z_loss_weight, WITHOUT_LOSS)?;
        if let Some(weight) = self.entropy_weight.filter(|weight| !weight.is_finite() || *weight == 0.0) {
            let problem = format!("is {weight}: use a number other than 0{WITHOUT_LOSS}");
            return Err(RouterError::new("router.entropy_weight", problem));
        }
        positive("router.sigmoid.routed_scaling", self.sigmoid.as_ref().map(|s| s.routed_scaling), "")?;
        positive("router.cosine.temperature", self.cosine.as_ref().map(|c| c.temperature), "")?;
        match &self.cosine {
            Some(cosine) if cosine.d_projection == 0 => {
                Err(RouterError::new("router.cosine.d_projection", "is 0: use at least 1"))
            }
            _ => Ok(()),
        }
    }

    fn validate_selection(&self, num_experts: usize) -> Result<(), RouterError> {
        self.validate_effect()?;
        self.validate_gradient(num_experts)?;
        match &self.selection {
            Selection::Noisy(noisy) => {
                positive("router.selection.noisy.importance_weight", noisy.importance_weight, WITHOUT_LOSS)?;
                positive("router.selection.noisy.load_weight", noisy.load_weight, WITHOUT_LOSS)
            }
            Selection::RandomSecond(_) if self.top_k != 2 => Err(RouterError::new(
                "router.selection.random_second",
                format!(
                    "needs two experts per token, but `model.ffn.moe.router.top_k` is {}: set it to 2, or remove the table",
                    self.top_k
                ),
            )),
            Selection::Sinkhorn(SinkhornConfig { max_iterations: 0, .. }) => {
                Err(RouterError::new("router.selection.sinkhorn.max_iterations", "is 0: use at least 1"))
            }
            Selection::Sinkhorn(sinkhorn) => {
                positive("router.selection.sinkhorn.temperature", Some(sinkhorn.temperature), "")?;
                positive("router.selection.sinkhorn.tolerance", Some(sinkhorn.tolerance), "")
            }
            Selection::ExpertChoice(choice) => {
                positive("router.selection.expert_choice.capacity_factor", Some(choice.capacity_factor), "")
            }
            Selection::Soft(soft) if soft.slots_per_expert == Some(0) => Err(RouterError::new(
                "router.selection.soft.slots_per_expert",
                "is 0: use at least 1, or remove the key",
            )),
            _ => Ok(()),
        }
    }

    /// A key that changes nothing must not be there: the run would not be the one that is written down.
    fn validate_effect(&self) -> Result<(), RouterError> {
        let given = [
            ("load_balancing_weight", self.load_balancing_weight.is_some()),
            ("z_loss_weight", self.z_loss_weight.is_some()),
            ("entropy_weight", self.entropy_weight.is_some()),
            ("jitter", self.jitter.is_some()),
            ("bias", self.bias.is_some()),
            ("groups", self.groups.is_some()),
            ("sigmoid", self.sigmoid.is_some()),
            ("cosine", self.cosine.is_some()),
            ("softmax", self.softmax == SoftmaxOrder::AfterSelection),
        ];
        let (keys, reason) = self.selection.without_effect();
        let mut idle = given.iter().filter(|(key, given)| *given && keys.contains(key));
        if let Some((key, _)) = idle.next() {
            let problem = format!("{reason}: remove it, or `model.ffn.moe.router.selection`");
            return Err(RouterError::new(format!("router.{key}"), problem));
        }
        if self.softmax == SoftmaxOrder::AfterSelection && self.sigmoid.is_some() {
            let problem = "is \"after_selection\", which has no effect on sigmoid scores: remove it, or \
                           `model.ffn.moe.router.sigmoid`";
            return Err(RouterError::new("router.softmax", problem));
        }
        if self.load_balancing_scope != BalancingScope::MicroBatch && self.load_balancing_weight.is_none() {
            let problem =
                "has no effect without `model.ffn.moe.router.load_balancing_weight`: set that, or remove it";
            return Err(RouterError::new("router.load_balancing_scope", problem));
        }
        Ok(())
    }

    /// One renormalised gate is always 1: the router would never get a gradient from the model's loss.
    fn validate_gradient(&self, num_experts: usize) -> Result<(), RouterError> {
        let one_gate = self.top_k == 1 && num_experts > 1;
        let takes_one = !matches!(self.selection, Selection::ExpertChoice(_) | Selection::Soft(_));
        if !(one_gate && takes_one && self.learns()) {
            return Ok(());
        }
        const REASON: &str =
            "the only gate of each token is always 1, so the router would not learn from the model's loss";
        if self.softmax == SoftmaxOrder::AfterSelection {
            let problem =
                format!("is \"after_selection\" with `top_k = 1`: {REASON}; use \"before_selection\"");
            return Err(RouterError::new("router.softmax", problem));
        }
        if self.renormalise {
            let problem = format!("is true with `top_k = 1`: {REASON}; use false");
            return Err(RouterError::new("router.renormalise", problem));
        }
        Ok(())
    }

    fn validate_bias(&self) -> Result<(), RouterError> {
        match &self.bias {
            Some(BiasRule::Sign(config)) => positive("router.bias.sign.rate", Some(config.rate), ""),
            Some(BiasRule::Proportional(config)) => {
                positive("router.bias.proportional.rate", Some(config.rate), "")
            }
            Some(BiasRule::Quantile {}) if self.groups.is_some() => Err(RouterError::new(
                "router.bias.quantile",
                "cannot balance experts that compete within groups: remove it, or `model.ffn.moe.router.groups`",
            )),
            Some(BiasRule::Quantile {}) | None => Ok(()),
        }
    }
}

impl Selection {
    /// Keys under `router` that change nothing, or not what they should, and why.
    fn without_effect(&self) -> (&'static [&'static str], &'static str) {
        const IDLE: &str = "has no effect on this selection";
        match self {
            Self::TopK => (&[], IDLE),
            Self::Noisy(_) => (&["bias", "groups", "sigmoid"], "does not go with noisy gating"),
            Self::RandomSecond(_) | Self::Sinkhorn(_) => (&["bias", "groups"], IDLE),
            Self::ExpertChoice(_) => (
                &["bias", "groups", "softmax", "load_balancing_weight"],
                "has no effect where experts take equally many tokens by their own scores",
            ),
            Self::Soft(_) => (
                &[
                    "load_balancing_weight",
                    "z_loss_weight",
                    "entropy_weight",
                    "bias",
                    "groups",
                    "sigmoid",
                    "cosine",
                    "softmax",
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
                    "sigmoid",
                    "cosine",
                    "softmax",
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
    /// Names the first key under `model.ffn.moe.capacity` that is not a positive number, or does not have one factor per
    /// expert.
    pub fn validate(&self, num_experts: usize) -> Result<(), RouterError> {
        positive("capacity.factor", Some(self.factor), ", or remove the table for a dropless layer")?;
        positive(
            "capacity.evaluation_factor",
            self.evaluation_factor,
            ", or remove the key to evaluate dropless",
        )?;
        self.validate_factors(num_experts)
    }

    /// Checks that the selection of the router written under `router_key` leaves something to a capacity.
    ///
    /// # Errors
    /// If it decides by itself how many tokens an expert takes.
    pub fn validate_selection(&self, router: &RouterConfig, router_key: &str) -> Result<(), RouterError> {
        let (reason, key) = match &router.selection {
            Selection::ExpertChoice(_) => {
                ("where experts take their tokens", "expert_choice.capacity_factor")
            }
            Selection::Soft(_) => ("on soft mixing", "soft.slots_per_expert"),
            _ => return Ok(()),
        };
        let problem = format!("has no effect {reason}: remove it, and set `{router_key}.selection.{key}`");
        Err(RouterError::new("capacity", problem))
    }

    fn validate_factors(&self, num_experts: usize) -> Result<(), RouterError> {
        let Some(factors) = &self.factor_per_expert else { return Ok(()) };
        if factors.len() != num_experts {
            let problem = format!(
                "has {} factors, but the layer has {num_experts} experts: give one for each",
                factors.len()
            );
            return Err(RouterError::new("capacity.factor_per_expert", problem));
        }
        factors.iter().try_for_each(|&factor| positive("capacity.factor_per_expert", Some(factor), ""))
    }
}

fn validate_groups(groups: &ExpertGroups, top_k: usize, num_experts: usize) -> Result<(), RouterError> {
    let ExpertGroups { num_groups, top_groups, .. } = *groups;
    if num_groups == 0 || !num_experts.is_multiple_of(num_groups) {
        let problem = format!("is {num_groups}, which does not divide {num_experts} experts: use a divisor");
        return Err(RouterError::new("router.groups.num_groups", problem));
    }
    let num_allowed = top_groups * (num_experts / num_groups);
    if !(1..=num_groups).contains(&top_groups) || num_allowed < top_k {
        let problem = format!(
            "is {top_groups}: of {num_groups} groups of {} experts, use at least {} and at most {num_groups}",
            num_experts / num_groups,
            top_k.div_ceil(num_experts / num_groups)
        );
        return Err(RouterError::new("router.groups.top_groups", problem));
    }
    Ok(())
}

fn positive(key: &str, value: Option<f64>, alternative: &str) -> Result<(), RouterError> {
    match value {
        Some(value) if !(value.is_finite() && value > 0.0) => {
            Err(RouterError::new(key, format!("is {value}: use a positive number{alternative}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DropPolicy;

    use RouterConfig as Config;

    /// The message for a layer of 8 experts, without the path that all messages begin with.
    #[track_caller]
    fn message(router: &str) -> String {
        let config: Config = serde_json::from_str(router).unwrap();
        let error = config.validate(8).unwrap_err().to_string();
        error.strip_prefix("`model.ffn.moe.router.").unwrap().to_string()
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
                 `model.ffn.moe.router.groups`",
            ),
        ]);
    }

    #[test]
    fn a_router_that_would_not_learn_from_the_models_loss_is_refused() {
        let renormalised = "renormalise` is true with `top_k = 1`: the only gate of each token is always 1, so the \
                            router would not learn from the model's loss; use false";
        let after_selection = "softmax` is \"after_selection\" with `top_k = 1`: the only gate of each token is always \
                               1, so the router would not learn from the model's loss; use \"before_selection\"";
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
                                 `model.ffn.moe.router.selection`";
        for selection in ["hash", "random", "forced_uniform"] {
            for key in [
                r#""bias": {"sign": {}}"#,
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
                "bias` has no effect on this selection: remove it, or `model.ffn.moe.router.selection`",
            ),
            (
                r#"{"top_k": 2, "selection": {"noisy": {}}, "sigmoid": {}}"#,
                "sigmoid` does not go with noisy gating: remove it, or `model.ffn.moe.router.selection`",
            ),
            (
                r#"{"top_k": 2, "selection": {"expert_choice": {}}, "load_balancing_weight": 0.01}"#,
                "load_balancing_weight` has no effect where experts take equally many tokens by their own scores: \
                 remove it, or `model.ffn.moe.router.selection`",
            ),
            (
                r#"{"top_k": 2, "selection": {"soft": {}}, "z_loss_weight": 0.01}"#,
                "z_loss_weight` has no effect on soft mixing, which selects nothing: remove it, or \
                 `model.ffn.moe.router.selection`",
            ),
            (
                r#"{"top_k": 2, "softmax": "after_selection", "sigmoid": {}}"#,
                "softmax` is \"after_selection\", which has no effect on sigmoid scores: remove it, or \
                 `model.ffn.moe.router.sigmoid`",
            ),
            (
                r#"{"top_k": 2, "load_balancing_scope": "global_batch"}"#,
                "load_balancing_scope` has no effect without `model.ffn.moe.router.load_balancing_weight`: set that, \
                 or remove it",
            ),
            (
                r#"{"top_k": 3, "selection": {"random_second": {}}}"#,
                "selection.random_second` needs two experts per token, but `model.ffn.moe.router.top_k` is 3: set it \
                 to 2, or remove the table",
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
            "`model.ffn.moe.capacity.factor_per_expert` has 3 factors, but the layer has 8 experts: give one for each"
        );
        let one_negative = CapacityConfig {
            factor_per_expert: Some(vec![1.0, 1.0, -2.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
            ..capacity(1.0)
        };
        assert_eq!(
            message(&one_negative),
            "`model.ffn.moe.capacity.factor_per_expert` is -2: use a positive number"
        );
        let evaluation = CapacityConfig { evaluation_factor: Some(0.0), ..capacity(1.0) };
        assert_eq!(
            message(&evaluation),
            "`model.ffn.moe.capacity.evaluation_factor` is 0: use a positive number, or remove the key to evaluate \
             dropless"
        );
        let with = |selection: &str| {
            let router = format!(r#"{{"top_k": 2, "selection": {{"{selection}": {{}}}}}}"#);
            capacity(1.0).validate_selection(&serde_json::from_str(&router).unwrap(), "model.ffn.moe.router")
        };
        assert_eq!(with("hash"), Ok(()));
        for (selection, key) in [("expert_choice", "capacity_factor"), ("soft", "slots_per_expert")] {
            let message = with(selection).unwrap_err().to_string();
            assert!(message.starts_with("`model.ffn.moe.capacity` has no effect"), "{message}");
            assert!(message.contains(&format!("selection.{selection}.{key}")), "{message}");
        }
    }

    #[test]
    fn a_capacity_factor_must_be_positive() {
        assert_eq!(
            capacity(0.0).validate(8).unwrap_err().to_string(),
            "`model.ffn.moe.capacity.factor` is 0: use a positive number, or remove the table for a dropless layer"
        );
        assert!(capacity(f64::INFINITY).validate(8).is_err());
        assert!(capacity(1.25).validate(8).is_ok());
    }
}
