//! The commands of lane `control`. They act on lanes that are worse than their own, and so are never behind what they act
//! on, however much of that waits.

use std::time::Duration;

use anyhow::{Result, ensure};
use corelane::{LaneError, Ticket, lane_ids, sleep};

use crate::lanes::Lanes;

/// Pauses a lane, if only for a moment; says how many commands it held back.
pub(crate) async fn hold(lanes: &Lanes, lane_id: &str, moment: Duration) -> Result<usize> {
    let before = pause(lanes, lane_id).await?;
    sleep(moment).await;
    let after = resume(lanes, lane_id).await?;
    ensure!(before == after, "{} commands left lane {lane_id:?} while it was paused", before.abs_diff(after));
    Ok(before)
}

/// Pauses a lane; says how many commands wait in it. Those that run go on.
pub(crate) async fn pause(lanes: &Lanes, lane_id: &str) -> Result<usize> {
    let lane = lanes.lane(lane_id)?;
    let pause = lanes.submit_once(lane_ids::CONTROL, "pause", || async move {
        lane.pause();
        Ok(lane.status().await.pending)
    })?;
    Ok(pause.await??)
}

/// Lets a paused lane go on; says how many commands waited in it.
pub(crate) async fn resume(lanes: &Lanes, lane_id: &str) -> Result<usize> {
    let lane = lanes.lane(lane_id)?;
    let resume = lanes.submit_once(lane_ids::CONTROL, "resume", || async move {
        let pending = lane.status().await.pending;
        lane.resume();
        Ok(pending)
    })?;
    Ok(resume.await??)
}

/// Cancels a command that waits in a paused lane: it never starts.
pub(crate) async fn cancel<T: Send + 'static>(lanes: &Lanes, mut ticket: Ticket<T>) -> Result<()> {
    let cancel = lanes.submit_once(lane_ids::CONTROL, "cancel", || async move {
        ticket.cancel();
        Ok(ticket)
    })?;
    let ticket = cancel.await??;
    ensure!(!ticket.has_started(), "command {} started while its lane was paused", ticket.id());
    ensure!(matches!(ticket.await?, Err(LaneError::Cancelled { .. })), "a command that was cancelled gave a result");
    Ok(())
}
