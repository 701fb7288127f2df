//! The paths of `hayloft-core` on a virtual machine, as a simulation of discrete events.
//!
//! Each virtual CPU runs one thread of a trace. Operations that stay in its sheaves affect no other
//! CPU, and are not events. Looks at a barn and requests for a lock are events, and happen in the
//! order of their times. All work under a lock is done at the moment of its acquisition, and takes
//! as long as its parts cost. The paths are those of `objects`:
//!
//! ```text
//! alloc: sheaf -> look at barn [lock] -> [lock] partial slabs
//!          -> [lock] pages -> [lock] the new slab arrives
//! free:  sheaf -> look at barn [lock] -> [lock] slabs, for each shared store
//!          -> [lock] pages, for each empty slab
//! ```

use hayloft_core::size_class::CLASSES;
use hayloft_core::tuning;

use super::blocks::{Block, Blocks};
use super::events::{Event, Events};
use super::lock::Lock;
use super::machine::{Distances, Here, Line, Time, ns};
use super::outcome::{Counts, Kind, Outcome};
use super::setup::{Protocol, Setup};
use super::store::{AllSlabs, Object, Store, Work, slab_of};
use super::trace::{Op, Trace};

/// The next step of a CPU, after its current wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Run the next operation of the trace.
    Run,
    LookToTake,
    Take,
    Cut,
    Page,
    Arrive,
    LookToPut,
    Put,
    PutHome,
    FreePage,
    /// An operation under the one lock.
    OneLock,
}

struct Cpu {
    time: Time,
    at: usize,
    step: Step,
    /// Class of the operation on a slow path.
    class: usize,
    /// Block that the slow path allocates or frees. `object` is the object freed.
    number: u32,
    object: Object,
    batch: Vec<Object>,
    emptied: Vec<u32>,
    slab: usize,
    /// Start of the current wait for a lock.
    since: Time,
    /// Number of waits so far, which identifies outdated events.
    wait: u32,
    timed: bool,
    sheaves: Vec<Vec<Object>>,
}

/// A simulation.
pub struct Model<'a> {
    trace: &'a Trace,
    setup: &'a Setup,
    distances: Distances,
    cpus: Vec<Cpu>,
    events: Events,
    stores: Vec<Store>,
    locks: Vec<Lock>,
    slabs: AllSlabs,
    arenas: Vec<Line>,
    /// Free list of each class, for the one lock. `objects` is the number of objects created.
    lists: Vec<Vec<Object>>,
    objects: u32,
    blocks: Blocks,
    at_mark: usize,
    start: Time,
    counts: Counts,
    acquired: [u64; 3],
    waited: [Time; 3],
    moved: Time,
}

impl<'a> Model<'a> {
    /// Creates a simulation in the state before the first operation.
    pub fn new(trace: &'a Trace, setup: &'a Setup) -> Self {
        let cpus = trace.threads.len();
        let stores = setup.topology.stores.min(cpus.div_ceil(setup.topology.per_store));
        let cpu = |_| Cpu {
            time: 0,
            at: 0,
            step: Step::Run,
            class: 0,
            number: 0,
            object: 0,
            batch: Vec::new(),
            emptied: Vec::new(),
            slab: 0,
            since: 0,
            wait: 0,
            timed: false,
            sheaves: vec![Vec::new(); CLASSES],
        };
        let store = |index: usize| Store::new(&setup.numbers[index % CLASSES]);
        Self {
            trace,
            setup,
            distances: Distances::new(setup.topology, &setup.costs),
            cpus: (0..cpus).map(cpu).collect(),
            events: Events::default(),
            stores: (0..stores * CLASSES).map(store).collect(),
            locks: (0..2 * stores * CLASSES + setup.arenas).map(|_| Lock::new(cpus)).collect(),
            slabs: AllSlabs::default(),
            arenas: vec![Line::NEW; setup.arenas],
            lists: vec![Vec::new(); CLASSES],
            objects: 0,
            blocks: Blocks::new(trace.classes.len()),
            at_mark: 0,
            start: 0,
            counts: Counts::default(),
            acquired: [0; 3],
            waited: [0; 3],
            moved: 0,
        }
    }

    /// Runs the trace to its end.
    ///
    /// # Panics
    ///
    /// Panics if the trace waits for an event that never happens.
    pub fn run(&mut self) -> Outcome {
        for cpu in 0..self.cpus.len() {
            self.events.schedule(0, cpu, Event::Go);
        }
        while let Some((time, cpu, event)) = self.events.pop() {
            match event {
                Event::Go => self.go(cpu, time),
                Event::Release(lock) => self.release(cpu, lock, time),
                Event::GiveUp(lock, wait) => {
                    if self.cpus[cpu].wait == wait {
                        self.locks[lock].give_up(cpu);
                    }
                }
                Event::Retry(lock) => {
                    if let Some(way) =
                        self.locks[lock].retry(Here { cpu, distances: &self.distances })
                    {
                        self.granted(cpu, lock, time + way);
                    }
                }
            }
        }
        assert!(
            self.cpus
                .iter()
                .zip(&self.trace.threads)
                .all(|(cpu, thread)| cpu.at == thread.ops.len()),
            "the trace waits for what does not happen"
        );
        let end = self.cpus.iter().map(|cpu| cpu.time).max().unwrap_or(0);
        let all = ((end - self.start) * self.cpus.len() as Time).max(1) as f64;
        Outcome {
            nanoseconds: (end - self.start) as f64 / 1000.0,
            pairs: self.trace.pairs(),
            counts: self.counts,
            acquired: self.acquired,
            waited: self.waited.map(|waited| waited as f64 / all),
            moved: self.moved as f64 / all,
        }
    }

    fn count(&mut self, cpu: usize, count: impl FnOnce(&mut Counts)) {
        if self.cpus[cpu].timed {
            count(&mut self.counts);
        }
    }

    fn go(&mut self, cpu: usize, time: Time) {
        self.cpus[cpu].time = time;
        match self.cpus[cpu].step {
            Step::Run => self.operations(cpu),
            Step::LookToTake => {
                let lock = self.lock_for(cpu, Step::Take);
                let way = self.locks[lock].look(Here { cpu, distances: &self.distances });
                let is_empty = self.stores[lock / 2].barn.objects.is_empty();
                self.cpus[cpu].step = if is_empty { Step::Cut } else { Step::Take };
                self.events.schedule(time + way, cpu, Event::Go);
            }
            Step::LookToPut => {
                let lock = self.lock_for(cpu, Step::Put);
                let way = self.locks[lock].look(Here { cpu, distances: &self.distances });
                let Cpu { class, batch, .. } = &self.cpus[cpu];
                let numbers = &self.setup.numbers[*class];
                let has_room = self.stores[lock / 2].barn.has_room(batch.len(), numbers);
                self.cpus[cpu].step = if has_room { Step::Put } else { Step::PutHome };
                self.events.schedule(time + way, cpu, Event::Go);
            }
            step => self.request(cpu, step, time),
        }
    }

    /// Runs operations of the trace until one of them involves other CPUs.
    fn operations(&mut self, cpu: usize) {
        let (work, hit) = (ns(self.setup.work), ns(self.setup.costs.hit));
        let thread = &self.trace.threads[cpu];
        loop {
            let state = &mut self.cpus[cpu];
            if state.at == thread.mark && !state.timed {
                state.timed = true;
                self.wait_at_mark();
                return;
            }
            let Some(op) = thread.ops.get(state.at).map(|packed| packed.op()) else { return };
            let (Op::Alloc(number) | Op::Free(number) | Op::Await(number)) = op;
            let block = self.blocks.state(number);
            // The CPU that allocates or frees the block may be ahead of this one in time, or
            // behind.
            match (op, block) {
                (Op::Free(_), Block::Unborn) | (Op::Await(_), Block::Unborn | Block::Live(_)) => {
                    self.blocks.wait(number, cpu);
                    return;
                }
                (Op::Free(_) | Op::Await(_), _) => {
                    state.time = state.time.max(self.blocks.changed(number));
                }
                (Op::Alloc(_), _) => {}
            }
            state.at += 1;
            if let Op::Await(_) = op {
                continue;
            }
            state.time += work;
            if self.setup.protocol == Protocol::OneLock {
                let class = self.trace.classes[number as usize].into();
                (state.class, state.number, state.step) = (class, number, Step::OneLock);
                let time = state.time;
                return self.events.schedule(time, cpu, Event::Go);
            }
            state.time += hit;
            let class = usize::from(self.trace.classes[number as usize]);
            let sheaf = &mut state.sheaves[class];
            if state.timed {
                self.counts.hit += 1;
            }
            match (op, block) {
                (Op::Alloc(_), _) => match sheaf.pop() {
                    Some(object) => self.change(cpu, number, Block::Live(object)),
                    None => return self.go_slow(cpu, class, number, 0, Step::LookToTake),
                },
                (_, Block::Live(object)) => {
                    let is_full = sheaf.len() == self.setup.numbers[class].sheaf;
                    if !is_full {
                        sheaf.push(object);
                    }
                    self.change(cpu, number, Block::Freed);
                    if is_full {
                        self.drain(cpu, class);
                        return self.go_slow(cpu, class, number, object, Step::LookToPut);
                    }
                }
                _ => unreachable!("a block is freed once"),
            }
        }
    }

    fn go_slow(&mut self, cpu: usize, class: usize, number: u32, object: Object, step: Step) {
        let slow = ns(self.setup.costs.slow);
        self.count(cpu, |counts| counts.slow += 1);
        let state = &mut self.cpus[cpu];
        (state.class, state.number, state.object, state.step) = (class, number, object, step);
        state.time += slow;
        let time = state.time;
        self.events.schedule(time, cpu, Event::Go);
    }

    /// Moves a batch off the sheaf.
    fn drain(&mut self, cpu: usize, class: usize) {
        let state = &mut self.cpus[cpu];
        let sheaf = &mut state.sheaves[class];
        let left = sheaf.len() - self.setup.numbers[class].batch;
        state.batch.extend(sheaf.drain(left..));
        let copies = state.batch.len();
        self.copied(cpu, copies);
    }

    fn copied(&mut self, cpu: usize, copies: usize) {
        self.cpus[cpu].time += ns(self.setup.costs.copy * copies as f64);
        self.count(cpu, |counts| counts.copy += copies as u64);
    }

    /// Records the change of a block, and resumes the CPU that waits for it.
    fn change(&mut self, cpu: usize, number: u32, block: Block) {
        let time = self.cpus[cpu].time;
        // A CPU that awaits the free also resumes at the allocation; it then waits again.
        if let Some(other) = self.blocks.change(number, block, time) {
            let time = time.max(self.cpus[other].time);
            self.events.schedule(time, other, Event::Go);
        }
    }

    fn wait_at_mark(&mut self) {
        self.at_mark += 1;
        if self.at_mark == self.cpus.len() {
            self.start = self.cpus.iter().map(|cpu| cpu.time).max().unwrap_or(0);
            for cpu in 0..self.cpus.len() {
                self.events.schedule(self.start, cpu, Event::Go);
            }
        }
    }

    /// Returns the lock that a step needs.
    fn lock_for(&self, cpu: usize, step: Step) -> usize {
        let state = &self.cpus[cpu];
        let own = self.setup.topology.store(cpu);
        match step {
            Step::Take | Step::Put => 2 * (own * CLASSES + state.class),
            Step::Cut | Step::Arrive => 2 * (own * CLASSES + state.class) + 1,
            Step::PutHome => {
                let last = *state.batch.last().expect("something is to be put home");
                let store = usize::from(self.slabs.slabs[slab_of(last)].store);
                2 * (store * CLASSES + state.class) + 1
            }
            _ => 2 * self.stores.len() + own % self.setup.arenas,
        }
    }

    fn kind(&self, lock: usize) -> Kind {
        match lock {
            _ if lock >= 2 * self.stores.len() => Kind::Arena,
            _ if lock.is_multiple_of(2) => Kind::Barn,
            _ => Kind::Slabs,
        }
    }

    fn request(&mut self, cpu: usize, step: Step, time: Time) {
        let lock = self.lock_for(cpu, step);
        let state = &mut self.cpus[cpu];
        (state.step, state.since) = (step, time);
        state.wait += 1;
        let wait = state.wait;
        match self.locks[lock].come(Here { cpu, distances: &self.distances }) {
            Some(way) => self.granted(cpu, lock, time + way),
            None => {
                let spins = f64::from(tuning::SPINS) * self.setup.costs.spin;
                self.events.schedule(time + ns(spins), cpu, Event::GiveUp(lock, wait));
            }
        }
    }

    /// Gives a CPU the lock that it requested, and does the work of its step.
    fn granted(&mut self, cpu: usize, lock: usize, time: Time) {
        let kind = self.kind(lock);
        let state = &mut self.cpus[cpu];
        // Invalidates the event that would end its spinning.
        state.wait += 1;
        if state.timed {
            self.acquired[kind as usize] += 1;
            self.waited[kind as usize] += time - state.since;
        }
        self.count(cpu, |counts| counts.lock += 1);
        let lasts = ns(self.setup.costs.lock) + self.under_lock(cpu, lock);
        self.events.schedule(time + lasts, cpu, Event::Release(lock));
    }

    /// Does the work of the step under its lock, and sets the next step. Returns the duration of
    /// the work.
    fn under_lock(&mut self, cpu: usize, lock: usize) -> Time {
        let state = &mut self.cpus[cpu];
        let class = state.class;
        let numbers = self.setup.numbers[class];
        let costs = &self.setup.costs;
        let here = Here { cpu, distances: &self.distances };
        let mut work = Work::default();
        let mut lasts = 0;
        let pages = u64::from(matches!(state.step, Step::Page | Step::FreePage));
        match state.step {
            Step::Take => {
                let barn = &mut self.stores[lock / 2].barn;
                work.add(barn.take(numbers.batch, here, &mut state.batch));
                state.step = if state.batch.is_empty() { Step::Cut } else { Step::Run };
            }
            Step::Put => {
                let barn = &mut self.stores[lock / 2].barn;
                if barn.has_room(state.batch.len(), &numbers) {
                    work.add(barn.put(&mut state.batch, here));
                    state.step = Step::Run;
                } else {
                    state.step = Step::PutHome;
                }
            }
            Step::Cut => {
                let partial = &mut self.stores[lock / 2].partial;
                work.lines += partial.fetch(here);
                work.add(partial.cut(&numbers, here, &mut self.slabs, &mut state.batch));
                state.step = if state.batch.is_empty() { Step::Page } else { Step::Run };
            }
            Step::Page => {
                // Three lines: the bins, and the descriptors of both ends of the run.
                work.lines += 3 * self.arenas[lock - 2 * self.stores.len()].write(here);
                lasts += ns(costs.page);
                let store = (self.setup.topology.store(cpu)) as u16;
                state.slab = self.slabs.make(store, &numbers);
                let cut = self.slabs.cut(state.slab, numbers.batch, here, &mut state.batch);
                work.add(cut);
                state.step = Step::Arrive;
            }
            Step::Arrive => {
                let partial = &mut self.stores[lock / 2].partial;
                work.lines += partial.fetch(here);
                work.visits += 1;
                partial.add(state.slab, &mut self.slabs);
                state.step = Step::Run;
            }
            Step::PutHome => {
                let partial = &mut self.stores[lock / 2].partial;
                work.lines += partial.fetch(here);
                let store = lock / 2 / CLASSES;
                work.add(partial.put(
                    store,
                    here,
                    &mut self.slabs,
                    &mut state.batch,
                    &mut state.emptied,
                ));
                state.step = match (state.batch.is_empty(), state.emptied.is_empty()) {
                    (false, _) => Step::PutHome,
                    (true, false) => Step::FreePage,
                    (true, true) => Step::Run,
                };
            }
            Step::FreePage => {
                work.lines += 3 * self.arenas[lock - 2 * self.stores.len()].write(here);
                lasts += ns(costs.page);
                let slab = state.emptied.pop().expect("a slab is empty");
                self.slabs.unused.push(slab);
                state.step = if state.emptied.is_empty() { Step::Run } else { Step::FreePage };
            }
            Step::OneLock => {
                // Only the head of the list is counted: the line of the object itself is part of
                // the program's own work.
                work.lines += self.arenas[lock - 2 * self.stores.len()].write(here);
                lasts += ns(costs.hit);
                state.step = Step::Run;
            }
            Step::Run | Step::LookToTake | Step::LookToPut => unreachable!("no lock for these"),
        }
        lasts += ns(costs.copy * work.copies as f64
            + costs.bit * work.bits as f64
            + costs.visit * work.visits as f64)
            + work.lines;
        if state.timed {
            self.moved += work.lines;
        }
        self.count(cpu, |counts| {
            counts.copy += work.copies as u64;
            counts.bit += work.bits as u64;
            counts.visit += work.visits as u64;
            counts.page += pages;
        });
        lasts
    }

    fn release(&mut self, cpu: usize, lock: usize, time: Time) {
        let released = self.locks[lock].release(cpu, &self.distances);
        let costs = &self.setup.costs;
        self.cpus[cpu].time = time + if released.called { ns(costs.wake) } else { 0 };
        let wakes = time + ns(costs.wake + costs.wake_up);
        if let Some((next, way)) = released.next {
            self.granted(next, lock, time + way);
        }
        if let Some(woken) = released.woken {
            // A wake has no effect before its CPU has gone to sleep.
            let asleep =
                self.cpus[woken].since + ns(f64::from(tuning::SPINS) * costs.spin + costs.sleep);
            self.events.schedule(wakes.max(asleep), woken, Event::Retry(lock));
        }
        self.after(cpu);
    }

    /// Continues a CPU that has released a lock.
    fn after(&mut self, cpu: usize) {
        let state = &mut self.cpus[cpu];
        if state.step == Step::Run {
            self.finish(cpu);
        } else if state.step == Step::Arrive {
            let make = ns(self.setup.costs.make);
            self.cpus[cpu].time += make;
            self.count(cpu, |counts| counts.make += 1);
        }
        let time = self.cpus[cpu].time;
        self.events.schedule(time, cpu, Event::Go);
    }

    /// Ends a slow path: moves the batch, or the freed object, to the sheaf.
    fn finish(&mut self, cpu: usize) {
        if self.setup.protocol == Protocol::OneLock {
            return self.finish_under_one_lock(cpu);
        }
        let state = &mut self.cpus[cpu];
        let sheaf = &mut state.sheaves[state.class];
        let (number, object) = (state.number, state.object);
        if let Block::Unborn = self.blocks.state(number) {
            let object = state.batch.pop().expect("a batch has one at least");
            let copies = state.batch.len();
            sheaf.append(&mut state.batch);
            self.copied(cpu, copies);
            self.change(cpu, number, Block::Live(object));
        } else {
            sheaf.push(object);
        }
    }

    fn finish_under_one_lock(&mut self, cpu: usize) {
        let Cpu { class, number, .. } = self.cpus[cpu];
        let list = &mut self.lists[class];
        let block = if let Block::Live(object) = self.blocks.state(number) {
            list.push(object);
            Block::Freed
        } else {
            Block::Live(list.pop().unwrap_or_else(|| {
                self.objects += 1;
                self.objects
            }))
        };
        self.change(cpu, number, block);
    }

    /// Checks that each object is in one place, and that no sheaf or barn exceeds its capacity.
    #[cfg(test)]
    fn check(&self) {
        let mut seen = std::collections::HashSet::new();
        let mut found = |object: Object| assert!(seen.insert(object), "an object is in two places");
        for cpu in &self.cpus {
            for (sheaf, numbers) in cpu.sheaves.iter().zip(&self.setup.numbers) {
                assert!(sheaf.len() <= numbers.sheaf);
                sheaf.iter().copied().for_each(&mut found);
            }
            cpu.batch.iter().copied().for_each(&mut found);
        }
        for (index, store) in self.stores.iter().enumerate() {
            assert!(store.barn.objects.len() <= self.setup.numbers[index % CLASSES].barn);
            store.barn.objects.iter().copied().for_each(&mut found);
        }
        self.blocks.live().for_each(&mut found);
        let mut all = 0;
        for (number, slab) in self.slabs.slabs.iter().enumerate() {
            if !self.slabs.unused.contains(&(number as u32)) {
                let ones = slab.free.iter().map(|word| word.count_ones() as usize).sum::<usize>();
                assert_eq!(ones, slab.free_count);
                all += slab.objects - ones;
            }
        }
        assert_eq!(seen.len(), all, "an object is lost");
        assert!(self.locks.iter().all(Lock::is_idle));
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::{Costs, Topology};
    use super::super::trace::{RULES, bursts, class_of_size, rule};
    use super::*;

    fn topology() -> Topology {
        Topology { per_cache: 2, per_socket: 4, per_store: 4, stores: 2 }
    }

    #[test]
    fn every_object_is_in_one_place() {
        let setup = Setup::new(topology(), Costs::recorded(), 5.0);
        for rule in RULES {
            for threads in [1, 2, 6] {
                let trace = (rule.make)(threads);
                let mut model = Model::new(&trace, &setup);
                model.run();
                model.check();
            }
        }
    }

    #[test]
    fn simulation_is_deterministic() {
        let setup = Setup::new(topology(), Costs::recorded(), 5.0);
        let trace = (rule("exchange").unwrap().make)(6);
        let outcome = Model::new(&trace, &setup).run();
        assert_eq!(outcome, Model::new(&trace, &setup).run());
    }

    #[test]
    fn sheaf_hits_scale_with_the_cpus() {
        let setup = Setup::new(topology(), Costs::recorded(), 5.0);
        let pair = rule("pair").unwrap();
        let throughput =
            [1, 64].map(|cpus| Model::new(&(pair.make)(cpus), &setup).run().throughput());
        assert!((throughput[1] / throughput[0] - 64.0).abs() < 0.01, "{throughput:?}");
    }

    #[test]
    fn private_work_scales_without_costs_of_sharing() {
        let free = Costs {
            line: [0.0; 3],
            lock: 0.0,
            copy: 0.0,
            bit: 0.0,
            visit: 0.0,
            page: 0.0,
            ..Costs::recorded()
        };
        let setup = Setup::new(topology(), free, 5.0);
        let batch = rule("batch").unwrap();
        let throughput =
            [1, 16].map(|cpus| Model::new(&(batch.make)(cpus), &setup).run().throughput());
        // Barns are shared, so one of several CPUs finds less there than a single CPU.
        assert!(throughput[1] / throughput[0] > 15.0, "{throughput:?}");
    }

    #[test]
    fn one_lock_does_not_scale() {
        let setup =
            Setup { protocol: Protocol::OneLock, ..Setup::new(topology(), Costs::recorded(), 5.0) };
        let pair = rule("pair").unwrap();
        let outcomes = [1, 6].map(|cpus| Model::new(&(pair.make)(cpus), &setup).run());
        assert!(outcomes[1].throughput() < outcomes[0].throughput());
        // Each of the 20 000 pairs takes it twice.
        assert_eq!(outcomes[0].acquired, [0, 0, 40_000]);
    }

    #[test]
    fn known_bursts_give_known_counts() {
        let setup = Setup::new(topology(), Costs::recorded(), 5.0);
        let numbers = tuning::of_class(class_of_size(64));
        let count = |blocks: usize| {
            let trace = bursts(1, class_of_size(64), blocks, 1, 1);
            let mut model = Model::new(&trace, &setup);
            let outcome = model.run();
            model.check();
            outcome.acquired
        };
        assert_eq!(count(numbers.batch), [0, 0, 0]);
        // After the previous burst, the sheaf holds one batch less than a burst needs: one refill
        // and one flush.
        assert_eq!(count(numbers.sheaf + numbers.batch), [2, 0, 0]);
        let [barn, slabs, arena] = count(numbers.sheaf + numbers.barn + 2 * numbers.batch);
        assert!(
            barn == 20 && slabs > 0 && arena == 0,
            "acquired: barn {barn}, slabs {slabs}, arena {arena}"
        );
    }
}
