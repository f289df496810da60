// SPDX-License-Identifier: GPL-2.0

//! The IMA policy, as far as a verifier must understand it: V13.

/// The label of the module's events.
const LABEL: &str = "ima_trim";

/// Whether a policy has IMA measure the events of ima_trim as they should be: the first rule that
/// is about them is `measure func=CRITICAL_DATA label=ima_trim`, without other conditions.
///
/// `text` is what the record `ima_policy_loaded` has: rules as `ima_policy_show()` of
/// `security/integrity/ima/ima_policy.c` prints them. For this hook `ima_match_rules()` there looks
/// at rules with its `func=` only.
pub(super) fn measures_events(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let first = text.lines().find_map(|rule| {
        let words: Vec<&str> = rule.split_ascii_whitespace().collect();
        let is_critical = words.contains(&"func=CRITICAL_DATA");
        let label = words.iter().find_map(|word| word.strip_prefix("label="));
        let is_ours = label.is_none_or(|label| label.split('|').any(|one| one == LABEL));

        (is_critical && is_ours).then_some(words)
    });
    first.is_some_and(|words| {
        words.first() == Some(&"measure")
            && words
                .iter()
                .skip(1)
                .all(|word| *word == "func=CRITICAL_DATA" || word.starts_with("label="))
    })
}

#[cfg(test)]
mod tests {
    use super::measures_events;

    #[test]
    fn the_rule() {
        for good in [
            "measure func=CRITICAL_DATA label=ima_trim \n",
            "dont_measure fsmagic=0x9fa0 \nmeasure func=CRITICAL_DATA label=ima_policy \nmeasure \
             func=CRITICAL_DATA label=ima_policy|ima_trim \n",
            "measure func=CRITICAL_DATA \n",
        ] {
            assert!(measures_events(good.as_bytes()), "{good}");
        }
        for bad in [
            "",
            "measure func=FILE_CHECK \n",
            "measure func=CRITICAL_DATA label=ima_policy \n",
            "measure func=CRITICAL_DATA label=ima_trim pcr=23 \n",
            "measure func=CRITICAL_DATA label=ima_trim uid=0 \n",
            "measure func=CRITICAL_DATA label=ima_trim template=ima-ng \n",
            "dont_measure func=CRITICAL_DATA \nmeasure func=CRITICAL_DATA label=ima_trim \n",
            "measure func=CRITICAL_DATA label=ima_trimmer \n",
        ] {
            assert!(!measures_events(bad.as_bytes()), "{bad}");
        }
    }
}
