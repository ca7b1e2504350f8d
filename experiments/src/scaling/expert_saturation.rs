//! The effective number of experts: few experts pay an overhead, many bring little more.

/// The transform of the number of experts E into E_hat. Clark et al., arXiv:2202.01169, eq. 1, and
/// arXiv:2502.05172, eq. 4:
///
/// `1/E_hat = 1/(E - 1 + (1/E_start - 1/E_max)^-1) + 1/E_max`
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ExpertSaturation {
    /// E_hat of a dense model, at least 1.
    pub(super) start: f64,
    /// E_hat of infinitely many experts, above `start`.
    pub(super) max: f64,
}

/// ln E_hat and its slopes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LogEffectiveExperts {
    pub(super) value: f64,
    /// With respect to ln E_start, at a constant ratio of E_max to E_start.
    pub(super) slope_log_start: f64,
    /// With respect to ln(E_max / E_start), at a constant E_start.
    pub(super) slope_log_ratio: f64,
}

impl ExpertSaturation {
    /// The transform fitted in arXiv:2502.05172, Table 3: held where a study has too few expert
    /// counts.
    pub(super) const PUBLISHED: Self = Self { start: 2.0732, max: 290.4521 };

    /// From ln E_start and ln(E_max / E_start).
    pub(super) fn from_logs(log_start: f64, log_ratio: f64) -> Self {
        Self { start: log_start.exp(), max: (log_start + log_ratio).exp() }
    }

    /// Length of the overhead: (1/E_start - 1/E_max)^-1.
    fn offset(self) -> f64 {
        1.0 / (1.0 / self.start - 1.0 / self.max)
    }

    /// E_hat of `num_experts`, which is at least 1.
    pub(super) fn effective_experts(self, num_experts: f64) -> f64 {
        1.0 / (1.0 / (num_experts - 1.0 + self.offset()) + 1.0 / self.max)
    }

    /// ln E_hat of `num_experts` with its slopes.
    pub(super) fn log_effective_experts(self, num_experts: f64) -> LogEffectiveExperts {
        let effective = self.effective_experts(num_experts);
        let share = (self.offset() / (num_experts - 1.0 + self.offset())).powi(2);
        let slope_log_start_alone = effective * share / self.start;
        let slope_log_max = effective * (1.0 - share) / self.max;
        LogEffectiveExperts {
            value: effective.ln(),
            slope_log_start: slope_log_start_alone + slope_log_max,
            slope_log_ratio: slope_log_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_expert_counts_as_the_start() {
        let saturation = ExpertSaturation { start: 1.847, max: 314.478 };
        assert!((saturation.effective_experts(1.0) - 1.847).abs() < 1e-12);
    }

    #[test]
    fn infinitely_many_experts_count_as_the_maximum() {
        let saturation = ExpertSaturation { start: 1.847, max: 314.478 };
        assert!((saturation.effective_experts(1e15) / 314.478 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn without_overhead_and_saturation_experts_count_as_they_are() {
        let saturation = ExpertSaturation { start: 1.0, max: 1e12 };
        for num_experts in [1.0, 2.0, 8.0, 64.0] {
            assert!((saturation.effective_experts(num_experts) / num_experts - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn more_experts_never_count_less() {
        let counts: Vec<f64> =
            (0..12).map(|power| ExpertSaturation::PUBLISHED.effective_experts(2_f64.powi(power))).collect();
        assert!(counts.windows(2).all(|pair| pair[0] < pair[1]), "{counts:?}");
    }

    #[test]
    fn slopes_match_central_differences() {
        let (log_start, log_ratio, step) = (0.7, 3.1, 1e-6);
        let value = |log_start, log_ratio, experts| {
            ExpertSaturation::from_logs(log_start, log_ratio).effective_experts(experts).ln()
        };
        for experts in [1.0, 3.0, 16.0, 512.0] {
            let slopes = ExpertSaturation::from_logs(log_start, log_ratio).log_effective_experts(experts);
            let start =
                value(log_start + step, log_ratio, experts) - value(log_start - step, log_ratio, experts);
            let ratio =
                value(log_start, log_ratio + step, experts) - value(log_start, log_ratio - step, experts);
            assert!((slopes.slope_log_start - start / (2.0 * step)).abs() < 1e-8, "{experts}");
            assert!((slopes.slope_log_ratio - ratio / (2.0 * step)).abs() < 1e-8, "{experts}");
        }
    }
}
