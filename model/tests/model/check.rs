//! Runs the checker.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};

use stateright::{Checker, HasDiscoveries, Model, Property};

/// Checks that no invariant fails in any state, that everything that must be reachable is reached,
/// and that there are more than `floor` states.
pub fn holds<M>(model: &M, floor: usize)
where
    M: Model + Clone + Debug + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let checker =
        model.clone().checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let states = checker.unique_state_count();
    println!("{model:?}: {states} states, {} deep", checker.max_depth());
    checker.assert_properties();
    assert!(states > floor, "{states} states only");
}

/// Checks that the invariant `name` fails; prints the shortest path there.
pub fn fails<M>(model: &M, name: &'static str)
where
    M: Model + Clone + Debug + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync + 'static,
{
    let condition = model.property(name).condition;
    let search = Search { model: model.clone(), name, condition, found: AtomicBool::new(false) };
    let checker = search.checker().finish_when(HasDiscoveries::Any).spawn_bfs().join();
    let Some(path) = checker.discovery(name) else {
        panic!("{model:?}: \"{name}\" holds in all of {} states", checker.unique_state_count());
    };
    let actions = path.into_actions();
    println!("{model:?}: \"{name}\" fails after {} steps:", actions.len());
    for action in actions {
        println!("  {action:?}");
    }
}

/// A model with one invariant, which fails only once: the checker finds the shortest path first,
/// but continues for a while and reports the last one.
struct Search<M: Model> {
    model: M,
    name: &'static str,
    condition: fn(&M, &M::State) -> bool,
    found: AtomicBool,
}

impl<M: Model> Model for Search<M> {
    type State = M::State;
    type Action = M::Action;

    fn init_states(&self) -> Vec<M::State> {
        self.model.init_states()
    }

    fn actions(&self, state: &M::State, actions: &mut Vec<M::Action>) {
        self.model.actions(state, actions);
    }

    fn next_state(&self, state: &M::State, action: M::Action) -> Option<M::State> {
        self.model.next_state(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(self.name, |search, state| {
            if search.found.load(Ordering::Relaxed) || (search.condition)(&search.model, state) {
                return true;
            }
            search.found.store(true, Ordering::Relaxed);
            false
        })]
    }

    fn within_boundary(&self, state: &M::State) -> bool {
        self.model.within_boundary(state)
    }
}
