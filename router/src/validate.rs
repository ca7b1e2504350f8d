//! Which configurations of a router and of a capacity make sense.

use crate::{BiasRule, CapacityConfig, ExpertGroups, RouterConfig, RouterError, Selection, SoftmaxOrder};

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
        one_table("router.selection", self.selection.as_ref().map(|tables| tables.given().len()))?;
        one_table("router.bias", self.bias.as_ref().map(|tables| tables.given().len()))?;
        self.validate_selection(num_experts)?;
        self.validate_scores()?;
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
        const LOSS: &str = ", or remove the key to turn the loss off";
        positive("router.load_balancing_weight", self.load_balancing_weight, LOSS)?;
        positive("router.z_loss_weight", self.z_loss_weight, LOSS)?;
        if let Some(weight) = self.entropy_weight.filter(|weight| !weight.is_finite() || *weight == 0.0) {
            let problem = format!("is {weight}: use a number other than 0{LOSS}");
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
        const LOSS: &str = ", or remove the key to turn the loss off";
        match self.selection() {
            Selection::Noisy(noisy) => {
                positive("router.selection.noisy.importance_weight", noisy.importance_weight, LOSS)?;
                positive("router.selection.noisy.load_weight", noisy.load_weight, LOSS)
            }
            Selection::RandomSecond(_) if self.top_k != 2 => Err(RouterError::new(
                "router.selection.random_second",
                format!("needs `top_k = 2`, but `model.ffn.moe.router.top_k` is {}", self.top_k),
            )),
            Selection::Sinkhorn(sinkhorn) => {
                positive("router.selection.sinkhorn.temperature", Some(sinkhorn.temperature), "")?;
                positive("router.selection.sinkhorn.tolerance", Some(sinkhorn.tolerance), "")
            }
            Selection::ExpertChoice(choice) => {
                positive("router.selection.expert_choice.capacity_factor", Some(choice.capacity_factor), "")
            }
            Selection::Soft(soft) if soft.slots_per_expert == Some(0) => {
                Err(RouterError::new("router.selection.soft.slots_per_expert", "is 0: use at least 1"))
            }
            Selection::Hash(_) | Selection::Random | Selection::ForcedUniform => self.validate_unlearned(),
            _ => Ok(()),
        }
        .and_then(|()| self.validate_gradient(num_experts))
    }

    /// A gate that is not learned has no losses, noise or bias.
    fn validate_unlearned(&self) -> Result<(), RouterError> {
        let without_effect = [
            ("load_balancing_weight", self.load_balancing_weight.is_some()),
            ("z_loss_weight", self.z_loss_weight.is_some()),
            ("entropy_weight", self.entropy_weight.is_some()),
            ("jitter", self.jitter.is_some()),
            ("bias", self.bias.is_some()),
            ("groups", self.groups.is_some()),
            ("sigmoid", self.sigmoid.is_some()),
            ("cosine", self.cosine.is_some()),
        ];
        match without_effect.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(RouterError::new(
                format!("router.{key}"),
                "has no effect, because the selection learns nothing: remove it, or the selection's table",
            )),
            None => Ok(()),
        }
    }

    /// One renormalised gate is always 1: the router would never get a gradient from the model's loss.
    fn validate_gradient(&self, num_experts: usize) -> Result<(), RouterError> {
        let one_gate = self.top_k == 1 && num_experts > 1;
        let takes_one = !matches!(self.selection(), Selection::ExpertChoice(_) | Selection::Soft(_));
        if !(one_gate && takes_one && self.learns()) {
            return Ok(());
        }
        const REASON: &str =
            "the only gate of each token is always 1, so the router would not learn from the model's loss";
        if self.sigmoid.is_none() && self.softmax == SoftmaxOrder::AfterSelection {
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

    fn validate_scores(&self) -> Result<(), RouterError> {
        if let Some(rule) = self.bias_rule() {
            if let BiasRule::Step { update, rate } = rule {
                let table = format!("{update:?}").to_lowercase();
                positive(&format!("router.bias.{table}.rate"), Some(rate), "")?;
            }
            if rule == BiasRule::Quantile && self.groups.is_some() {
                return Err(RouterError::new(
                    "router.bias.quantile",
                    "cannot balance experts that compete within groups: remove it, or `model.ffn.moe.router.groups`",
                ));
            }
        }
        let selects_by_score = matches!(self.selection(), Selection::TopK);
        for (key, given) in [("bias", self.bias.is_some()), ("groups", self.groups.is_some())] {
            if given && !selects_by_score {
                let problem =
                    "has no effect on this selection: remove it, or `model.ffn.moe.router.selection`";
                return Err(RouterError::new(format!("router.{key}"), problem));
            }
        }
        Ok(())
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
        let Some(factors) = &self.factor_per_expert else { return Ok(()) };
        if factors.len() != num_experts {
            let problem = format!("has {} factors, but the layer has {num_experts} experts", factors.len());
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

/// Ok if a table of alternatives is absent or names one.
fn one_table(key: &str, num_given: Option<usize>) -> Result<(), RouterError> {
    match num_given {
        None | Some(1) => Ok(()),
        Some(0) => Err(RouterError::new(key, "is empty: give one of its tables, or remove it")),
        Some(number) => Err(RouterError::new(key, format!("has {number} tables: keep one of them"))),
    }
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

    #[test]
    fn each_mistake_names_its_key_value_and_remedy() {
        let message = |config: Config| config.validate(8).unwrap_err().to_string();
        assert_eq!(
            message(Config::top_k(9)),
            "`model.ffn.moe.router.top_k` is 9, but the layer has 8 experts: use 1..=8"
        );
        assert_eq!(
            message(Config::top_k(0)),
            "`model.ffn.moe.router.top_k` is 0, but the layer has 8 experts: use 1..=8"
        );
        assert_eq!(
            message(Config { jitter: Some(1.5), ..Config::top_k(2) }),
            "`model.ffn.moe.router.jitter` is 1.5: use a number between 0 and 1, or remove the key to turn jitter off"
        );
        assert_eq!(
            message(Config { z_loss_weight: Some(-0.1), ..Config::top_k(2) }),
            "`model.ffn.moe.router.z_loss_weight` is -0.1: use a positive number, or remove the key to turn the loss off"
        );
        assert_eq!(
            message(Config { load_balancing_weight: Some(f64::NAN), ..Config::top_k(2) }),
            "`model.ffn.moe.router.load_balancing_weight` is NaN: use a positive number, or remove the key to turn \
             the loss off"
        );
        assert!(Config::top_k(8).validate(8).is_ok());
    }

    #[test]
    fn a_capacity_factor_must_be_positive() {
        let capacity = |factor| CapacityConfig {
            factor,
            factor_per_expert: None,
            drop: DropPolicy::Position,
            evaluation_factor: None,
        };
        assert_eq!(
            capacity(0.0).validate(8).unwrap_err().to_string(),
            "`model.ffn.moe.capacity.factor` is 0: use a positive number, or remove the table for a dropless layer"
        );
        assert!(capacity(f64::INFINITY).validate(8).is_err());
        assert!(capacity(1.25).validate(8).is_ok());
    }
}
