//! The circuit breaker of the articles, with and without it.
//!
//! Invariant: of what is asked each request is accounted for, be it answered, failed by a server or refused by the waypoint.

use anyhow::{Result, ensure};
use mesh_tests::lab::Lab;

use super::{CLIENT, ONE_ZONE, POD, ask, misbehave, routed, service, subsets, within, world};
use crate::tunnel::until;

/// What became of forty requests of four users.
#[derive(Clone, Copy, Debug)]
struct Siege {
    answered: usize,
    /// By their server.
    failed: usize,
    /// Refused by the waypoint, because three were waiting for a connection.
    overflown: usize,
}

/// How many users there are, and how often each asks.
const USERS: usize = 4;
const EACH: usize = 10;

/// `siege -r 10 -c 4`: forty requests of four users.
///
/// The breaker lets three wait for a connection: a fourth that comes while none is open yet is refused by the waypoint,
/// as the rule says, and says so in a header. Like siege's users, who wait up to a second (`-d 1`), whoever is refused
/// comes again after a second. Until then three are left, who never find three others waiting; and of their thirty
/// requests, each of which takes milliseconds, none is left after it. So a user is refused once at most.
async fn siege(lab: &Lab) -> Result<Siege> {
    let one = "curl -sS -m 20 -o /dev/null -w '%{http_code}%header{x-envoy-overloaded}' http://rating:8080/rate/1";
    let user = format!(
        "for i in $(seq {EACH}); do said=$({one}); echo \"$said\"; [ \"$said\" != 503true ] || sleep 1; done"
    );
    let users = format!("for user in $(seq {USERS}); do {{ {user}; }} & done; wait");
    let refused = async || lab.log_lines(POD, &["response_flags=UO "]).await;
    let before = refused().await?.len();
    let ran = lab.exec(CLIENT, &["sh", "-c", &users]).await?;
    let codes = |code: &str| ran.out.lines().filter(|l| *l == code).count();
    let siege = Siege {
        answered: codes("200"),
        failed: codes("503"),
        overflown: codes("503true"),
    };
    println!("{siege:?}");
    let all = siege.answered + siege.failed + siege.overflown;
    ensure!(all == USERS * EACH, "{siege:?}: {ran:?}");
    ensure!(siege.overflown <= USERS, "{siege:?}");
    until("a line of each refusal", async || {
        let lines = refused().await?.len() - before;
        ensure!(lines == siege.overflown, "{lines} lines of {siege:?}");
        Ok(())
    })
    .await?;
    Ok(siege)
}

/// Without the breaker a misbehaving version goes on failing requests; with it, it is left out after its first 5xx.
pub async fn a_circuit_breaker_leaves_out_who_misbehaves() -> Result<()> {
    let lab = world(&[ONE_ZONE.to_owned(), service("rating"), service("reviews")]).await?;
    lab.apply(seed!("rating-subsets")).await?;
    lab.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: rating}\nspec: {hosts: [rating], http: [{route: [{destination: {host: rating}}], retries: {attempts: 0}}]}\n").await?;
    routed(&lab, "rating").await?;
    misbehave(&lab, "rating-v2").await?;
    let before = siege(&lab).await?;
    // Half of them are the second version's, as a coin says.
    within("failed without a breaker", before.failed as u64, 40, 0.5)?;
    ensure!(before.overflown == 0, "no rule bounds it: {before:?}");
    lab.apply(seed!("rating-circuit-breaker")).await?;
    until("the breaker", async || {
        let siege = siege(&lab).await?;
        ensure!(siege.failed == 0, "{siege:?}");
        Ok(())
    })
    .await?;
    // From its first 5xx on nothing more came from it.
    let lines = lab
        .log_lines(POD, &["dst.workload=rating-v2", "response_code=503"])
        .await?;
    let after = siege(&lab).await?;
    let again = lab
        .log_lines(POD, &["dst.workload=rating-v2", "response_code=503"])
        .await?;
    ensure!(
        after.failed == 0 && again.len() == lines.len(),
        "{after:?}, {} lines",
        again.len()
    );
    println!("without a breaker {before:?}, with it {after:?}");
    // Its three minutes cannot be waited for here: the same object with 5 s instead.
    let ip = lab.status().await?.pod("default/rating-v2")?.ip.to_string();
    let url = format!("http://{ip}:8080/rate/behave");
    lab.exec(CLIENT, &["curl", "-sS", &url]).await?;
    let asked = ask(&lab, "http://rating:8080/rate/[1-40]").await?;
    ensure!(asked.first == 40, "an ejected endpoint answered: {asked:?}");
    lab.apply("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\nspec: {hosts: [reviews], http: [{route: [{destination: {host: reviews}}], retries: {attempts: 0}}]}\n").await?;
    let short = seed!("rating-circuit-breaker")
        .replace("baseEjectionTime: 3m", "baseEjectionTime: 5s")
        .replace("name: rating}", "name: reviews}")
        .replace("host: rating", "host: reviews");
    lab.apply(&short).await?;
    misbehave(&lab, "reviews-v2").await?;
    until("an ejection", async || {
        let asked = ask(&lab, "http://reviews:8080/rate/[1-20]").await?;
        ensure!(asked.failed == 0 && asked.first == 20, "{asked:?}");
        Ok(())
    })
    .await?;
    let ip = lab
        .status()
        .await?
        .pod("default/reviews-v2")?
        .ip
        .to_string();
    let url = format!("http://{ip}:8080/rate/behave");
    lab.exec(CLIENT, &["curl", "-sS", &url]).await?;
    until("its return", async || {
        let asked = ask(&lab, "http://reviews:8080/rate/[1-20]").await?;
        ensure!(asked.ok == 20 && asked.first < 20, "{asked:?}");
        Ok(())
    })
    .await?;
    // A bound of connections that is not reached changes nothing.
    let mine = subsets("reviews");
    lab.apply(&mine).await?;
    lab.apply(seed!("reviews-circuit-breaker")).await?;
    until("service within bounds", async || {
        let asked = ask(&lab, "http://reviews:8080/rate/[1-20]").await?;
        ensure!(asked.ok == 20, "{asked:?}");
        Ok(())
    })
    .await
}
