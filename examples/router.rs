//! Caches and readers in a router: packets are objects of a cache, and routes are looked up without
//! a lock while another thread replaces them.
//!
//! Each worker takes packets from a queue of its own, looks up the route in a read-side section,
//! and drops the packet, on another CPU than it was allocated on. A control thread keeps replacing
//! all routes in turn, and passes the old ones to `free_rcu`, which frees a route once no worker
//! can still be reading it. A route contains its network and a checksum, which would expose a route
//! that is reused too early. `cargo run --release -p examples --bin router` prints the numbers of
//! packets routed and routes replaced.

use std::alloc::Layout;
use std::error::Error;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use hayloft::cache::{AllocError, Cache, CacheBox, TypedCache};
use hayloft::rcu;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

const PACKETS: usize = 500_000;
const WORKERS: usize = 3;
const INTERFACES: usize = 4;
/// Packets in a queue.
const BACKLOG: usize = 256;

struct Packet {
    destination: [u8; 4],
    hops_left: u8,
    payload: [u8; 200],
}

/// The route of packets whose destination begins with `network`.
struct Route {
    network: u8,
    interface: u16,
    age: u64,
    checksum: u64,
}

impl Route {
    fn new(network: u8, age: u64) -> Route {
        let interface = (age as usize % INTERFACES) as u16;
        Route { network, interface, age, checksum: Route::checksum(network, interface, age) }
    }

    fn checksum(network: u8, interface: u16, age: u64) -> u64 {
        (age ^ u64::from(network) << 48 ^ u64::from(interface) << 32)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    fn is_whole(&self, network: u8) -> bool {
        self.network == network
            && self.checksum == Route::checksum(self.network, self.interface, self.age)
    }
}

/// The routing table: a route for each network, in objects of a cache.
struct Table<'a> {
    routes: [AtomicPtr<Route>; 256],
    cache: &'a Cache,
}

impl Table<'_> {
    fn new(cache: &Cache) -> Table<'_> {
        Table { routes: [const { AtomicPtr::new(ptr::null_mut()) }; 256], cache }
    }

    /// Calls `read` with the route of a network, if there is one, and returns its result. May be
    /// called in any number of threads, and in signal handlers.
    fn look_up<R>(&self, network: u8, read: impl FnOnce(&Route) -> R) -> Option<R> {
        // A route that is found while the guard exists stays valid until the guard is dropped.
        let _reading = rcu::read_lock();
        let route = self.routes[usize::from(network)].load(Ordering::Acquire);
        // SAFETY: `route` is null, or was initialised before it was published in the table. It is
        // freed by `free_rcu` only.
        unsafe { route.as_ref() }.map(read)
    }

    /// Replaces the route of a network.
    fn replace(&self, route: Route) -> Result<(), AllocError> {
        let slot = &self.routes[usize::from(route.network)];
        let object: NonNull<Route> = self.cache.alloc()?.cast();
        // SAFETY: the object has the layout of a route, and is not published yet.
        unsafe { object.write(route) };
        self.retire(slot.swap(object.as_ptr(), Ordering::AcqRel));
        Ok(())
    }

    /// Frees a route that was removed from the table, unless it is null, once no reader can see it.
    fn retire(&self, route: *mut Route) {
        if let Some(route) = NonNull::new(route) {
            // SAFETY: the route is an object of this cache. It is no longer in the table, so only
            // earlier readers can see it. It has no destructor to run.
            unsafe { self.cache.free_rcu(route.cast()) };
        }
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        for slot in &self.routes {
            self.retire(slot.swap(ptr::null_mut(), Ordering::AcqRel));
        }
    }
}

/// The packets that a worker counted.
#[derive(Default)]
struct Tally {
    routed: [usize; INTERFACES],
    expired: usize,
    broken: usize,
}

fn work(table: &Table<'_>, queue: Receiver<CacheBox<'_, Packet>>) -> Tally {
    let mut tally = Tally::default();
    for mut packet in queue {
        let network = packet.destination[0];
        let interface = table.look_up(network, |route| {
            route.is_whole(network).then_some(usize::from(route.interface))
        });
        packet.hops_left -= 1;
        match interface.flatten() {
            _ if packet.payload.iter().any(|byte| *byte != network) => tally.broken += 1,
            None => tally.broken += 1,
            Some(_) if packet.hops_left == 0 => tally.expired += 1,
            Some(interface) => tally.routed[interface] += 1,
        }
    }
    tally
}

/// Replaces all routes in turn until `end` is set. Returns the number of replacements.
fn control(table: &Table<'_>, end: &AtomicBool) -> Result<u64, AllocError> {
    let mut age = 0;
    while !end.load(Ordering::Relaxed) {
        age += 1;
        table.replace(Route::new(age as u8, age))?;
    }
    Ok(age)
}

/// Receives packets, passes them to the workers in turn, and returns the sum of the workers'
/// tallies.
fn receive(packets: &TypedCache<Packet>, table: &Table<'_>) -> Result<Tally, Box<dyn Error>> {
    thread::scope(|scope| {
        let mut queues = Vec::new();
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            let (queue, packets) = mpsc::sync_channel(BACKLOG);
            queues.push(queue);
            workers.push(scope.spawn(|| work(table, packets)));
        }
        for number in 0..PACKETS {
            let network = (number * 7) as u8;
            let packet = Packet {
                destination: [network, 0, 0, 1],
                hops_left: if number % 100 == 0 { 1 } else { 64 },
                payload: [network; 200],
            };
            let packet = packets.alloc(packet).map_err(|(error, _)| error)?;
            queues[number % WORKERS].send(packet).map_err(|_| "a worker is gone")?;
        }
        drop(queues);
        let mut sum = Tally::default();
        for worker in workers {
            let tally = worker.join().map_err(|_| "a worker panicked")?;
            for (all, one) in sum.routed.iter_mut().zip(tally.routed) {
                *all += one;
            }
            sum.expired += tally.expired;
            sum.broken += tally.broken;
        }
        Ok(sum)
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let packets = TypedCache::new("packets")?;
    let routes = Cache::builder("routes", Layout::new::<Route>()).build()?;
    let table = Table::new(&routes);
    for network in 0..=255 {
        table.replace(Route::new(network, 0))?;
    }
    let end = AtomicBool::new(false);
    let (tally, replaced) = thread::scope(|scope| {
        let control = scope.spawn(|| control(&table, &end));
        let tally = receive(&packets, &table);
        end.store(true, Ordering::Relaxed);
        (tally, control.join())
    });
    let (tally, replaced) = (tally?, replaced.map_err(|_| "the control thread panicked")??);
    drop(table);
    // `destroy` waits for objects that wait for readers, and fails if an object is in use.
    routes.destroy()?;
    packets.destroy()?;

    let routed: usize = tally.routed.iter().sum();
    println!("{routed} packets routed {:?}, {} expired", tally.routed, tally.expired);
    println!("{replaced} routes replaced meanwhile, {} packets met a broken one", tally.broken);
    if tally.broken > 0 || routed + tally.expired != PACKETS || replaced == 0 {
        return Err("packets went astray".into());
    }
    Ok(())
}
