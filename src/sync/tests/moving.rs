//! From one control plane to another.

use tokio::time::Instant;

use super::*;
use crate::store::Listing;
use crate::sync::publisher::CATCH_UP_WITHIN;

#[tokio::test]
async fn another_control_plane_sends_only_what_changed_since_the_first() {
    let mut world = World::new().await;
    for number in 0..100 {
        world.put(&format!("routes/{number}"), route("/")).await;
    }
    let mut edge = world.data_plane(Role::Ingress, EDGE);
    assert_eq!(edge.step().await.changes.len(), 100);
    let first = world.control.take().unwrap();
    world.start().await;
    assert!(first.drain.drain(SOON).await, "it sends its data planes away");
    assert!(edge.step().await.changes.is_empty(), "what it has is known by its revisions");
    let revision = world.put("routes/7", route("/seven")).await;
    assert_eq!(names(&edge.step().await), ["routes/7"]);
    assert_eq!(world.applied(revision).await.data_planes[0].sent, 1);
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_is_a_moment_behind_takes_nothing_back_meanwhile() {
    let publisher = Publisher::new(super::super::scope::tests::rules(), Arc::new(|_, _| true));
    let at = |revision| Listing { revision, ..Listing::default() };
    publisher.reset(at(5), "/apisix");
    let began = Instant::now();
    publisher.caught_up(5).await;
    assert_eq!(began.elapsed(), Duration::ZERO);

    let moment = CATCH_UP_WITHIN / 5;
    let comes = async {
        tokio::time::sleep(moment).await;
        publisher.reset(at(9), "/apisix");
    };
    tokio::join!(publisher.caught_up(9), comes);
    assert!(began.elapsed() >= moment && began.elapsed() < moment * 2);

    // One that began anew is behind for good.
    let began = Instant::now();
    publisher.caught_up(1_000).await;
    assert!(began.elapsed() >= CATCH_UP_WITHIN && began.elapsed() < CATCH_UP_WITHIN * 2);
}

#[tokio::test]
async fn a_control_plane_that_does_not_reach_its_store_is_left_for_another() {
    let mut world = World::new().await;
    let revision = world.put("routes/1", route("/1")).await;
    let speaks = *world.address.borrow();
    let first = world.control.take().unwrap();
    world.start_without_store().await;
    let dial = Dial { address: world.address.subscribe(), spiffe_id: EDGE.into() };
    let within = Some(Duration::from_millis(200));
    let settings = Settings { first_within: within, ..quick(Role::Ingress) };
    let mut edge = DataPlane::new(Subscriber::start(settings, dial, None));
    let mut status = edge.feed.status();
    let left = async {
        while status.load().error.as_ref().is_none_or(|why| !why.contains("nothing to say")) {
            status.changed().await;
        }
    };
    tokio::time::timeout(SOON, left).await.unwrap();
    world.address.send_replace(speaks);
    assert_eq!(names(&edge.step().await), ["routes/1"]);
    assert!(first.publisher.wait_applied(revision, SOON).await.has_applied(revision));
}
