//! Netlink calls that fail: peers that stay are reached all the time, and the state is right once calls succeed.
//!
//! `PORTOLAN_ERRNOS` says how many error numbers are tried at each call (1, of 12), `PORTOLAN_FAULT_SECONDS` how long one in five
//! calls fails (2).

use netlink::faults::{ERRNOS, Plan, plan};

use super::*;

/// Peers that stay.
const STAYING: [u8; 2] = [1, 2];

/// This node, the peers that stay, and one more.
fn members(other: u8) -> Vec<Member> {
    let member = |number| Member {
        number,
        range: number,
        near: number < 2,
    };
    [0, 1, 2, other].map(member).into()
}

fn settled() -> Result<World> {
    shell::prepare()?;
    let mut world = World::new(1)?;
    world.members = members(3);
    world.settle(false)?;
    Ok(world)
}

impl World {
    /// Replaces the third peer while calls fail. Returns the number of calls.
    fn change_while_failing(&mut self, other: u8, runs: usize, failing: Plan) -> Result<usize> {
        self.members = members(other);
        let peers = self.peers()?;
        plan(failing);
        for _ in 0..runs {
            // What prevents it is known; that it goes no further than this is the question.
            let _ = self
                .reconciler
                .run(&peers, self.now, false, &Default::default());
        }
        let calls = plan(Plan::None);
        let what = || format!("peers {other}, {failing:?}");
        self.reaches_who_stays().with_context(what)?;
        self.settle(false).with_context(what)?;
        Ok(calls)
    }

    fn reaches_who_stays(&self) -> Result<()> {
        for family in Family::ALL {
            let device = self.config.device_name(family);
            for number in STAYING {
                let pod = match family {
                    Family::Ip => format!("10.244.{number}.5"),
                    Family::Ip6 => format!("fd00:244:{number:x}::5"),
                };
                let way = ip(&format!("route get {pod}"))?;
                ensure!(way.contains(&format!(" dev {device} ")), "{pod}: {way}");
            }
        }
        Ok(())
    }
}

#[scenario(Vxlan)]
fn an_errno_at_every_overlay_call_loses_no_peer() -> Result<()> {
    let errnos = number("PORTOLAN_ERRNOS", 1)? as usize;
    Namespace::new("errnos")?.run(move || -> Result<()> {
        let mut world = settled()?;
        let mut others = [4, 3].into_iter().cycle();
        for call in 0.. {
            let mut calls = 0;
            for errno in ERRNOS.into_iter().cycle().skip(call).take(errnos) {
                let other = others.next().context("there is always another")?;
                calls = world.change_while_failing(other, 1, Plan::Once(call, errno))?;
            }
            if calls <= call {
                println!("{call} calls, each with {errnos} error numbers");
                ensure!(call > 20, "only {call} calls");
                break;
            }
        }
        Ok(())
    })?
}

#[scenario(Vxlan)]
fn a_fifth_of_overlay_calls_failing_loses_no_peer() -> Result<()> {
    let seconds = number("PORTOLAN_FAULT_SECONDS", 2)?;
    Namespace::new("faults")?.run(move || -> Result<()> {
        let mut world = settled()?;
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut rounds: u64 = 0;
        while Instant::now() < end {
            rounds += 1;
            let other = 3 + (rounds % 2) as u8;
            world.change_while_failing(other, 3, Plan::Fifth(rounds))?;
        }
        println!("{rounds} rounds");
        Ok(())
    })?
}
