//! Which parameters the words of a configuration mean, and what holds for each group of them.

use switchyard_ground::key_error::KeyError;
use switchyard_ground::pattern::fits;
use switchyard_ground::units::grouped;
use switchyard_model::{ParameterName, Role, RouterPart, Transformer, parameter_shapes};

use crate::config::{ParameterGroupConfig, RunConfig};
use crate::qk_clip::stays_as_it_is;

/// Whether `word` means this parameter: the word for its kind, with `role:` in front or not, its name,
/// or a pattern of names with `*`.
pub(crate) fn is_meant(word: &str, name: ParameterName) -> bool {
    word.strip_prefix("role:").unwrap_or(word) == name.role.group()
        || (word.contains(['*', '.']) && fits(word, &name.to_string()))
}

/// The group that a parameter belongs to: the first that means it.
pub(crate) fn group_of(
    groups: &[ParameterGroupConfig],
    name: ParameterName,
) -> Option<&ParameterGroupConfig> {
    groups.iter().find(|group| is_meant(&group.matches, name))
}

/// Whether a parameter stays as it is, by `start.freeze` or its group.
pub(crate) fn is_frozen(config: &RunConfig, name: ParameterName) -> bool {
    config.start.freeze.iter().any(|word| is_meant(word, name))
        || group_of(&config.train.groups, name).is_some_and(|group| group.freeze)
}

/// Whether the loads move this parameter, and no gradient does.
fn is_balanced(name: ParameterName) -> bool {
    name.role == Role::Router(RouterPart::SelectionBias)
}

/// Whether any parameter could be frozen, or belong to a group.
pub(crate) fn has_words(config: &RunConfig) -> bool {
    !config.start.freeze.is_empty() || !config.train.groups.is_empty()
}

/// Ok if every word means something, every group has a parameter that no earlier one has, and something
/// is left to train.
///
/// # Errors
/// The key, the word and what to write instead.
pub(crate) fn check(config: &RunConfig, names: &[ParameterName]) -> Result<(), KeyError> {
    for word in &config.start.freeze {
        if !names.iter().any(|name| is_meant(word, *name)) {
            return Err(KeyError::new("start.freeze", meaningless(word), remedy(names)));
        }
    }
    for (index, group) in config.train.groups.iter().enumerate() {
        let (key, word) = (format!("train.groups[{index}].match"), &group.matches);
        let meant = || names.iter().filter(|name| is_meant(word, **name));
        if meant().next().is_none() {
            return Err(KeyError::new(key, meaningless(word), remedy(names)));
        }
        if meant().all(|name| group_of(&config.train.groups[..index], *name).is_some()) {
            let problem = format!("is \"{word}\", all of whose parameters are in earlier groups");
            return Err(KeyError::new(key, problem, "put the narrower group first"));
        }
        let is_still = |name: &ParameterName| is_balanced(*name) || is_frozen(config, *name);
        if !group.freeze && meant().all(is_still) {
            let problem = format!("is \"{word}\", of which no optimizer trains anything");
            let remedy =
                "leave the group out, or name what is neither frozen by `start.freeze` nor a selection bias";
            return Err(KeyError::new(key, problem, remedy));
        }
    }
    if names.iter().all(|name| is_frozen(config, *name)) {
        let key = if config.start.freeze.is_empty() { "train.groups" } else { "start.freeze" };
        return Err(KeyError::new(key, "leaves nothing to train", "freeze less"));
    }
    if let Some(muon) = &config.train.muon
        && names.iter().filter(|name| muon.takes(name.role)).all(|name| is_frozen(config, *name))
    {
        let problem = "has nothing to train: all of its matrices are frozen";
        return Err(KeyError::new("train.muon", problem, "remove the table, or freeze less"));
    }
    let mut layers = names.iter().filter_map(|name| match name.role {
        Role::Attention(..) => name.layer,
        _ => None,
    });
    if config.train.qk_clip.is_some()
        && layers.all(|layer| stays_as_it_is(layer, |name| is_frozen(config, name)))
    {
        let problem = "has no head to clip: queries or keys of every layer are frozen";
        return Err(KeyError::new("train.qk_clip", problem, "remove the table, or freeze less"));
    }
    Ok(())
}

fn meaningless(word: &str) -> String {
    format!("holds \"{word}\", which names no parameter of this model")
}

fn remedy(names: &[ParameterName]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().step_by(names.len().div_ceil(SHOWN).max(1));
    let shown: Vec<String> = shown.map(|name| format!("`{name}`")).collect();
    format!(
        "use embedding, head, norms, attention, lstm, dense, router, experts, shared_experts, or a name with `*`, such as {}",
        shown.join(", ")
    )
}

/// What the groups are and how many parameters are trained, for whoever watches the run.
pub(crate) fn notes(network: &Transformer, config: &RunConfig) -> Vec<String> {
    let parameters = parameter_shapes(network);
    let number = |of: &dyn Fn(ParameterName, bool) -> bool| {
        let meant = parameters.iter().filter(|parameter| of(parameter.name, parameter.value.learns));
        meant.map(|parameter| parameter.value.shape.iter().product::<usize>() as u64).sum::<u64>()
    };
    let groups = &config.train.groups;
    let mut notes: Vec<String> = groups
        .iter()
        .map(|group| {
            let own = |name, learns| {
                (learns || group.freeze)
                    && group_of(groups, name).is_some_and(|found| std::ptr::eq(found, group))
            };
            format!("group `{}`: {}, {} parameters", group.matches, words(group), grouped(number(&own)))
        })
        .collect();
    let (trained, all) = (number(&|_, learns| learns), number(&|_, _| true));
    let freezes = !config.start.freeze.is_empty() || groups.iter().any(|group| group.freeze);
    notes.extend(freezes.then(|| {
        let by = match config.start.freeze.as_slice() {
            [] => "`train.groups` freezes the others".to_owned(),
            words => format!("`start.freeze` is {words:?}"),
        };
        format!("{} of {} parameters are trained: {by}", grouped(trained), grouped(all))
    }));
    notes
}

fn words(group: &ParameterGroupConfig) -> String {
    if group.freeze {
        return "as they are".into();
    }
    let rate = format!("{} times the learning rate", group.learning_rate_factor);
    match group.weight_decay {
        Some(decay) => format!("{rate}, weight decay {decay}"),
        None => rate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_means_a_kind_of_parameter_and_a_pattern_names() {
        let name = ParameterName::parse("blocks.3.ffn.experts.gate").unwrap();
        for word in [
            "experts",
            "role:experts",
            "blocks.3.*",
            "*.gate",
            "blocks.*.experts.*",
            "blocks.3.ffn.experts.gate",
        ] {
            assert!(is_meant(word, name), "{word}");
        }
        for word in ["router", "role:router", "blocks.4.*", "*.up", "blocks.3.ffn.experts", "expert"] {
            assert!(!is_meant(word, name), "{word}");
        }
    }
}
