//! The arms of a study with everything solved: which recipe each of them is.

use std::path::Path;

use switchyard_datasets::SourceConfig;
use switchyard_trainer::config::{RunConfig, ScheduleConfig, ScheduleShapeConfig};
use switchyard_trainer::config_file::{self, Override};
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::train::check_words;

use crate::coordinates::tuned_shape;

use super::equality::{nearest_width, quantity};
use super::file::{ArmConfig, LoadedStudy, StudyFile};
use super::metric::Metric;
use super::result::HeldEqual;
use crate::failure::Failure;

/// One arm, before seed, learning rate and budget are filled in.
#[derive(Debug, Clone)]
pub(crate) struct Arm {
    /// Name of the arm.
    pub(crate) label: String,
    /// What it changes in the recipe, solved keys included.
    pub(crate) overrides: Vec<String>,
    /// The recipe, changed.
    pub(crate) config: RunConfig,
    /// What that resolves to at the recipe's own budget: sizes and costs of the model.
    pub(crate) plan: RunPlan,
    /// The quantity held equal, over the baseline's.
    pub(crate) equality: f64,
    /// Most memory resident in a process that trained it; `None` unless memory is held equal.
    pub(crate) measured_peak_bytes: Option<u64>,
    /// Learning rates to choose from, at least one.
    pub(crate) learning_rates: Vec<f64>,
    /// The arm whose choice is taken instead.
    pub(crate) transfers_from: Option<usize>,
}

/// The arms of `loaded`, the baseline first, each solved for what is held equal.
///
/// # Errors
/// A mistake in the recipe or an override, with its place; a solved key that cannot reach the
/// baseline's cost.
pub(crate) fn resolve_arms(loaded: &LoadedStudy) -> Result<Vec<Arm>, Failure> {
    let study = &loaded.study;
    let baseline = written_arm(loaded, &study.arms[0], Vec::new())?;
    let is_synthetic = matches!(baseline.config.data.source, SourceConfig::Synthetic(_));
    check_data_seed(loaded, &baseline)?;
    if study.new_corpus_per_seed && !is_synthetic {
        return Err(Failure::Mistake(format!(
            "{}: `new_corpus_per_seed` is true, but the data is not `data.synthetic`: only generated text can be had anew",
            loaded.path.display()
        )));
    }
    check_groups(loaded, &baseline)?;
    let mut arms = vec![baseline];
    for config in &study.arms[1..] {
        let arm = solved_arm(loaded, config, &arms[0])?;
        check_data_seed(loaded, &arm)?;
        check_groups(loaded, &arm)?;
        check_same_tokens(study.question.metric, &arms[0], &arm).map_err(|key| {
            Failure::Mistake(format!(
                "{}: arm `{}`: `{key}` is not the baseline's, so that their losses cannot be paired: move it to the study's \
                 `set`",
                loaded.path.display(),
                arm.label
            ))
        })?;
        arms.push(arm);
    }
    for index in 0..arms.len() {
        if let Some(source) = arms[index].transfers_from {
            check_transfer(loaded, &arms[index], &arms[source])?;
            // Until the choice is made, what it is made from first.
            arms[index].learning_rates = vec![arms[source].learning_rates[0]];
        }
    }
    Ok(arms)
}

/// Ok if the rate of `source` is one for the arm: its parametrisation begins at the shape that the rate
/// is chosen for.
fn check_transfer(loaded: &LoadedStudy, arm: &Arm, source: &Arm) -> Result<(), Failure> {
    let tuned_shape = |arm: &Arm| tuned_shape(&arm.config, &arm.plan.model);
    let problem = match arm.config.model.parametrisation {
        None => "the arm has no `model.parametrisation`",
        Some(_) if tuned_shape(arm) != tuned_shape(source) => {
            "`model.parametrisation.base` of the arm is another shape than the one whose rate that arm chooses"
        }
        Some(_) => return Ok(()),
    };
    Err(Failure::Mistake(format!(
        "{}: arm `{}`: `learning_rate.transfer_from` is `{}`, but {problem}: give the arm the sizes of `{}` as its base",
        loaded.path.display(),
        arm.label,
        source.label,
        source.label
    )))
}

/// Ok unless the arm has a key that the study's own would take the effect from.
fn check_data_seed(loaded: &LoadedStudy, arm: &Arm) -> Result<(), Failure> {
    if arm.config.train.data_seed.is_none() {
        return Ok(());
    }
    Err(Failure::Mistake(format!(
        "{}: arm `{}`: `train.data_seed` has no effect in a study, whose `seeds` order the data too: leave it out, or cross some \
         seeds with `crossed_seeds`",
        loaded.path.display(),
        arm.label
    )))
}

/// Ok if what the arm freezes or trains otherwise is there: better told now than when its turn comes.
pub(crate) fn check_groups(loaded: &LoadedStudy, arm: &Arm) -> Result<(), Failure> {
    check_words(&arm.config, &arm.plan).map_err(|error| in_arm(error.into(), &loaded.path, &arm.label))
}

/// The key in which the arms would see other tokens, or the same in another order. What is judged in
/// bits per byte may have a tokenizer of its own.
fn check_same_tokens(metric: Metric, baseline: &Arm, arm: &Arm) -> Result<(), &'static str> {
    let mut data = arm.config.data.clone();
    if metric == Metric::BitsPerByte {
        data.tokenizer.clone_from(&baseline.config.data.tokenizer);
    }
    let differs = [
        ("data", baseline.config.data != data),
        ("train.seq_len", baseline.plan.seq_len != arm.plan.seq_len),
        ("train.batch_tokens", baseline.plan.tokens_per_step != arm.plan.tokens_per_step),
    ];
    differs.iter().find(|(_, differs)| *differs).map_or(Ok(()), |(key, _)| Err(key))
}

/// The arm as written, with `solved` changes after its own.
///
/// # Errors
/// A mistake in the recipe or an override, with its place.
pub(crate) fn written_arm(
    loaded: &LoadedStudy,
    arm: &ArmConfig,
    solved: Vec<String>,
) -> Result<Arm, Failure> {
    let StudyFile { set, learning_rates, .. } = &loaded.study;
    let overrides: Vec<String> = set.iter().chain(&arm.set).cloned().chain(solved).collect();
    let (config, plan) =
        read_recipe(&loaded.base, &overrides).map_err(|failure| in_arm(failure, &loaded.path, &arm.label))?;
    let learning_rates = match arm.learning_rates.as_ref().unwrap_or(learning_rates).as_slice() {
        [] => vec![config.train.adamw.learning_rate],
        given => given.to_vec(),
    };
    let source = arm.learning_rate.as_ref().map(|transfer| &transfer.transfer_from);
    let transfers_from =
        source.and_then(|label| loaded.study.arms.iter().position(|arm| arm.label == *label));
    let (label, equality, measured_peak_bytes) = (arm.label.clone(), 1.0, None);
    Ok(Arm { label, overrides, config, plan, equality, measured_peak_bytes, learning_rates, transfers_from })
}

fn solved_arm(loaded: &LoadedStudy, config: &ArmConfig, baseline: &Arm) -> Result<Arm, Failure> {
    let study = &loaded.study;
    let with_equality = |arm: Arm| match quantity(study.held_equal, &baseline.plan) {
        Some(target) => {
            let mine = quantity(study.held_equal, &arm.plan).unwrap_or(target);
            Arm { equality: mine / target, ..arm }
        }
        None => arm,
    };
    let Some(target) = quantity(study.held_equal, &baseline.plan) else {
        return written_arm(loaded, config, Vec::new());
    };
    let key = key_to_solve(loaded, config)?;
    let names_key = |text: &String| Override::parse(text).is_ok_and(|given| given.sets(&key));
    if config.set.iter().any(names_key) {
        return written_arm(loaded, config, Vec::new()).map(with_equality);
    }
    solved_for(loaded, config, baseline, target).map(with_equality)
}

/// The arm at the width at which the quantity held equal is nearest to `target`.
///
/// # Errors
/// A mistake in the recipe or an override; a target that no width reaches.
pub(super) fn solved_for(
    loaded: &LoadedStudy,
    config: &ArmConfig,
    baseline: &Arm,
    target: f64,
) -> Result<Arm, Failure> {
    let study = &loaded.study;
    let key = key_to_solve(loaded, config)?;
    let arm_at = |width: usize| written_arm(loaded, config, vec![format!("{key}={width}")]);
    let multiple = width_multiple(study, &arm_at(study.width_multiple * 64)?.config);
    let width = nearest_width(target, multiple, |width| {
        let arm = arm_at(width)?;
        Ok::<_, Failure>(quantity(study.held_equal, &arm.plan).unwrap_or(target))
    })?;
    let Some(width) = width else {
        return Err(Failure::Mistake(format!(
            "{}: arm `{}`: no value of `{key}` makes it cost what `{}` does (held equal: {}): give the baseline more or the \
             arm less of something else, or name `{key}` in the arm's `set`",
            loaded.path.display(),
            config.label,
            baseline.label,
            held_equal_words(study.held_equal),
        )));
    };
    arm_at(width)
}

/// Experts are cut into `granularity` parts, which must come out even.
fn width_multiple(study: &StudyFile, config: &RunConfig) -> usize {
    let granularity = config.model.ffn.moe.as_ref().and_then(|moe| moe.granularity).unwrap_or(1);
    study.width_multiple * granularity
}

fn key_to_solve(loaded: &LoadedStudy, arm: &ArmConfig) -> Result<String, Failure> {
    if let Some(key) = &arm.solve {
        return Ok(key.clone());
    }
    // Whether the arm is a mixture is only known once it is read, which its missing width must not
    // prevent.
    const EXPERTS: &str = "model.ffn.moe.d_expert";
    const DENSE: &str = "model.ffn.d_ff";
    const MIXTURE: &str = "model.ffn.moe";
    let is_mixture_after = |given: Override| {
        let is_inside = given.key().strip_prefix(MIXTURE).is_some_and(|rest| rest.starts_with('.'));
        (is_inside || given.sets(MIXTURE)).then_some(true).or((given.key() == MIXTURE).then_some(false))
    };
    let mut changes = loaded.study.set.iter().chain(&arm.set).rev();
    let is_moe = match changes.find_map(|text| is_mixture_after(Override::parse(text).ok()?)) {
        Some(is_moe) => is_moe,
        None => read_recipe(&loaded.base, &[])?.0.model.ffn.moe.is_some(),
    };
    Ok(if is_moe { EXPERTS } else { DENSE }.into())
}

fn read_recipe(path: &Path, overrides: &[String]) -> Result<(RunConfig, RunPlan), Failure> {
    let overrides = overrides.iter().map(|text| Override::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let loaded = config_file::load(path, &overrides)?;
    let plan = loaded.resolve()?;
    Ok((loaded.config, plan))
}

/// The arm whose changes were the mistake, before the mistake.
fn in_arm(failure: Failure, study: &Path, label: &str) -> Failure {
    match failure {
        Failure::Mistake(message) => {
            Failure::Mistake(format!("{}: arm `{label}`: {message}", study.display()))
        }
        other => other,
    }
}

/// `held_equal` in words.
pub(crate) fn held_equal_words(held_equal: HeldEqual) -> &'static str {
    match held_equal {
        HeldEqual::ActiveFlops => "active training FLOPs",
        HeldEqual::TotalParams => "total parameters, and tokens",
        HeldEqual::Memory => "measured training memory, and tokens",
        HeldEqual::WallClock => "predicted seconds of training",
        HeldEqual::Tokens => "training tokens",
    }
}

impl Arm {
    /// The configuration of one run of the arm.
    pub(crate) fn run_config(&self, study: &StudyFile, run: &RunSettings) -> RunConfig {
        let mut config = self.config.clone();
        config.name = format!("{}-{}", study.name, self.label);
        config.seed = run.seed;
        config.train.data_seed = run.data_seed;
        if let SourceConfig::Synthetic(synthetic) = &mut config.data.source
            && study.new_corpus_per_seed
        {
            synthetic.seed = run.data_seed.unwrap_or(run.seed);
        }
        // The curves are made of evaluations, which must all be of the same tokens.
        config.train.eval.max_tokens = None;
        // No choice is made by the test split.
        config.train.eval.test_at_end = false;
        config.train.eval_every_steps = Some((run.num_steps / study.budget.evaluations).max(1));
        // Every run must come to the end of its budget.
        config.train.early_stopping = None;
        config.train.checkpoints.keep_last = 1;
        config.train.checkpoints.keep_best = false;
        config.sample.num_tokens = 0;
        let base_rate = config.train.adamw.learning_rate;
        scale_minimum(&mut config.train.schedule, run.learning_rate / base_rate);
        config.train.adamw.learning_rate = run.learning_rate;
        if let Some(fraction) = study.budget.warmup_fraction {
            config.train.schedule.warmup_steps = (fraction * run.num_steps as f64).round() as u64;
        }
        config.train.num_steps = run.num_steps;
        config
    }
}

/// What tells the runs of one arm apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RunSettings {
    /// Seed.
    pub(crate) seed: u64,
    /// Seed of the data order; `None` is the same.
    pub(crate) data_seed: Option<u64>,
    /// Peak learning rate.
    pub(crate) learning_rate: f64,
    /// Optimizer steps.
    pub(crate) num_steps: u64,
}

/// Keep the schedule's shape when its peak changes.
fn scale_minimum(schedule: &mut ScheduleConfig, factor: f64) {
    match &mut schedule.shape {
        Some(ScheduleShapeConfig::Cosine(decay) | ScheduleShapeConfig::Linear(decay)) => {
            decay.min_learning_rate *= factor;
        }
        Some(ScheduleShapeConfig::Wsd(wsd)) => wsd.min_learning_rate *= factor,
        Some(ScheduleShapeConfig::InverseSqrt | ScheduleShapeConfig::Constant) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A study of the tiny recipe below; the tail is the arms.
    pub(crate) fn study(held_equal: &str, arms: &str) -> Result<Vec<Arm>, String> {
        const RECIPE: &str = r#"
name = "tiny"
[data.synthetic]
num_domains = 2
vocab_size = 64
num_documents = 50
document_tokens = 64
branching = 4
[data.split.by_document_hash]
validation_fraction = 0.1
[model]
num_layers = 2
d_model = 32
[model.attention]
num_heads = 2
[model.ffn]
activation = "swiglu"
d_ff = 96
[train]
num_steps = 40
seq_len = 32
batch_tokens = 64
[train.adamw]
learning_rate = 0.002
[train.schedule.cosine]
min_learning_rate = 0.0002
"#;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tiny.toml"), RECIPE).unwrap();
        let path = folder.path().join("study.toml");
        let text = format!(
            "name = \"s\"\nbase = \"tiny.toml\"\nheld_equal = \"{held_equal}\"\nseeds = [0]\n[budget]\nnum_steps = [40]\n\
             [[arms]]\nlabel = \"dense\"\n{arms}"
        );
        fs::write(&path, text).unwrap();
        let loaded = LoadedStudy::read(&path).map_err(|failure| failure.message().unwrap())?;
        resolve_arms(&loaded).map_err(|failure| failure.message().unwrap())
    }

    const E8K2: &str = "[[arms]]\nlabel = \"e8k2\"\n\
        set = [\"model.ffn.d_ff=\", \"model.ffn.moe={num_experts=8,router={top_k=2}}\"]\n";

    #[test]
    fn the_width_of_the_experts_is_solved_for_equal_active_flops() {
        let arms = study("active_flops", E8K2).unwrap();
        // Two experts of 48 are the dense block of 96; the router comes on top.
        assert_eq!(arms[1].config.model.ffn.moe.as_ref().unwrap().d_expert, 48);
        assert!((arms[1].equality - 1.0).abs() < 0.02, "{}", arms[1].equality);
        assert_eq!(arms[1].overrides.last().unwrap(), "model.ffn.moe.d_expert=48");
    }

    /// A dense block of width 96 costs 6 * 32 * 96 a token, a router of 8 experts 2 * 32 * 8. With
    /// a capacity factor of 2 four of 8 experts work on a token: 24 wide. With one slot each for 32
    /// tokens a quarter of an expert does, and 4 * 32 * 8 go into mixing: 6 * 32 * 352 / 4 are left
    /// for it.
    #[test]
    fn experts_that_choose_and_mixed_tokens_are_solved_for_what_they_compute() {
        for (selection, d_expert) in
            [("expert_choice={capacity_factor=2}", 24), ("soft={slots_per_expert=1}", 352)]
        {
            let router = format!("router={{top_k=2,selection={{{selection}}}}}");
            let arms = study("active_flops", &E8K2.replace("router={top_k=2}", &router)).unwrap();
            assert_eq!(arms[1].config.model.ffn.moe.as_ref().unwrap().d_expert, d_expert, "{selection}");
            let quantity = |d_expert: usize| {
                let mut config = arms[1].config.clone();
                config.model.ffn.moe.as_mut().unwrap().d_expert = d_expert;
                quantity(HeldEqual::ActiveFlops, &RunPlan::resolve(&config).unwrap()).unwrap()
            };
            let costs: Vec<f64> = (1..100).map(|count| quantity(8 * count)).collect();
            assert!(costs.windows(2).all(|pair| pair[0] < pair[1]), "{selection}: {costs:?}");
        }
    }

    #[test]
    fn eight_experts_in_the_memory_and_parameters_of_a_dense_block_are_narrow() {
        for held_equal in ["total_params", "memory"] {
            let arms = study(held_equal, E8K2).unwrap();
            assert!(arms[1].config.model.ffn.moe.as_ref().unwrap().d_expert <= 16);
            // One step of the width is a third of the experts here.
            assert!((arms[1].equality.ln()).abs() < 0.3, "{held_equal}: {}", arms[1].equality);
        }
    }

    /// The worst moment of a step changes with the width, but more never takes less: the search
    /// comes to an end.
    #[test]
    fn wider_experts_take_no_less_memory() {
        for router in ["top_k=2", "top_k=2,selection={expert_choice={}}", "top_k=2,selection={soft={}}"] {
            let arms = study(
                "tokens",
                &E8K2.replace("num_experts=8", "num_experts=8,d_expert=8").replace("top_k=2", router),
            );
            let config = arms.unwrap()[1].config.clone();
            let memory = |d_expert: usize| {
                let mut config = config.clone();
                config.model.ffn.moe.as_mut().unwrap().d_expert = d_expert;
                quantity(HeldEqual::Memory, &RunPlan::resolve(&config).unwrap()).unwrap()
            };
            let widths: Vec<f64> = (1..200).map(|count| memory(8 * count)).collect();
            assert!(widths.is_sorted_by(|a, b| a < b), "{router}: {widths:?}");
        }
    }

    #[test]
    fn a_width_that_the_arm_names_is_left_and_its_inequality_told() {
        let wide = E8K2
            .replace("num_experts=8", "num_experts=8,d_expert=96")
            .replace("router={top_k=2}}\"", "router={top_k=2}}\", \"model.ffn.moe.d_expert=96\"");
        let arms = study("active_flops", &wide).unwrap();
        assert_eq!(arms[1].config.model.ffn.moe.as_ref().unwrap().d_expert, 96);
        assert!(arms[1].equality > 1.3, "{}", arms[1].equality);
    }

    #[test]
    fn a_dense_arm_is_solved_by_the_width_of_its_block() {
        let deeper = "[[arms]]\nlabel = \"deeper\"\nset = [\"model.num_layers=3\"]\n";
        let arms = study("active_flops", deeper).unwrap();
        assert!(arms[1].config.model.ffn.d_ff.unwrap() < 96);
        assert!((arms[1].equality - 1.0).abs() < 0.05, "{}", arms[1].equality);
    }

    #[test]
    fn a_mistake_names_the_study_the_arm_and_the_override() {
        let message = study("active_flops", &E8K2.replace("top_k=2", "top_K=2")).unwrap_err();
        assert!(message.contains("study.toml: arm `e8k2`: --set model.ffn.moe="), "{message}");
        let too_big = E8K2.replace("num_experts=8", "num_experts=4096");
        let message = study("total_params", &too_big).unwrap_err();
        assert!(
            message.contains("no value of `model.ffn.moe.d_expert` makes it cost what `dense` does"),
            "{message}"
        );
    }

    #[test]
    fn the_studies_of_the_repository_hold_their_arms_equal_within_two_per_cent() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("studies");
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let studies: Vec<_> = paths.filter(|path| super::super::is_study(path).unwrap()).collect();
        assert!(studies.len() >= 3, "{studies:?}");
        for path in studies {
            let arms = resolve_arms(&LoadedStudy::read(&path).unwrap()).unwrap();
            for arm in arms {
                assert!(
                    (arm.equality - 1.0).abs() < 0.02,
                    "{}: {} {}",
                    path.display(),
                    arm.label,
                    arm.equality
                );
            }
        }
    }

    #[test]
    fn the_minimum_of_the_schedule_follows_the_learning_rate() {
        let arms =
            study("tokens", E8K2.replace("num_experts=8", "num_experts=8,d_expert=8").as_str()).unwrap();
        let study_file = toml::from_str::<StudyFile>(super::super::file::tests::STUDY).unwrap();
        let run = RunSettings { seed: 5, data_seed: None, learning_rate: 0.004, num_steps: 100 };
        let config = arms[1].run_config(&study_file, &run);
        let Some(ScheduleShapeConfig::Cosine(cosine)) = config.train.schedule.shape else {
            panic!("another shape")
        };
        assert_eq!(cosine.min_learning_rate, 0.0004);
        assert_eq!((config.seed, config.train.num_steps, config.train.eval_every_steps), (5, 100, Some(5)));
    }
}
