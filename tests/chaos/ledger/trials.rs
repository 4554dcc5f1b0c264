//! A judge that finds nothing is none: logs that are made up, broken one rule at a time, random ones that are right, and
//! a real cluster's.

mod agrees;
mod cluster;
mod faults;
mod files;
mod script;

use libtest_mimic::Trial;

use crate::support::story;

pub(crate) fn trials() -> Vec<Trial> {
    macro_rules! plain {
        ($($room:ident::$name:ident),+ $(,)?) => {
            vec![$(Trial::test(stringify!($name), || { $room::$name(); Ok(()) })),+]
        };
    }
    let mut all = plain![
        faults::an_admission_too_many_is_found_for_each_limit,
        faults::a_limit_binds_from_the_entry_that_sets_it,
        faults::a_permit_that_came_back_too_early_is_found,
        faults::memory_that_is_not_there_is_not_reserved,
        faults::what_is_over_stays_over_and_an_epoch_does_not_come_back,
        faults::an_outcome_that_was_not_is_found,
        faults::an_acknowledged_request_that_is_lost_or_done_twice_is_found,
        files::entries_come_once_and_in_order_whoever_writes_first,
        files::a_torn_line_is_waited_for_and_may_become_another,
        files::renamed_files_are_followed,
        files::voters_that_disagree_are_found,
        files::an_entry_that_others_do_not_have_is_found,
        files::a_line_twice_and_a_line_that_is_none_are_found,
        agrees::the_count_agrees_with_the_registry_in_random_histories,
    ];
    let name = "a_real_clusters_log_is_whole_and_right";
    all.push(story(name, cluster::a_real_clusters_log_is_whole_and_right));
    all
}
