//! The statements, as they are sent: one for each call.

/// A statement that is prepared once for each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    Enqueue,
    Claim,
    Settle,
    Extend,
    Held,
    Letters,
    Replay,
    Discard,
    Result,
    SetLimits,
    Depth,
    Release,
    Tidy,
}

impl Query {
    pub(super) const COUNT: usize = Self::Tidy as usize + 1;

    /// With `queue.` for the schema.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Enqueue => {
                "select ord, outcome, command_id \
                 from queue.enqueue($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
            }
            Self::Claim => {
                "select id, lane, kind, priority, fence, deliveries, retry_count, format, body \
                 from queue.claim($1, $2, $3, $4, $5, $6)"
            }
            Self::Settle => "select ord, outcome from queue.settle($1, $2, $3, $4, $5, $6, $7)",
            Self::Extend => "select ord from queue.extend($1, $2, $3)",
            Self::Held => {
                "select partition, fence from queue.commands \
                 where id = $1 and state + 0 = 2 and worker = $2 and lease_until > clock_timestamp()"
            }
            Self::Letters => {
                "select id, lane, kind, priority, fence, deliveries, retry_count, format, body, partition, reason, at \
                 from queue.commands where state = 3 \
                 and place > coalesce((select place from queue.commands where id = $1 and state = 3), 0) \
                 order by place limit $2"
            }
            Self::Replay => "select queue.replay($1)",
            Self::Discard => {
                "with gone as (delete from queue.commands where id = $1 and state + 0 = 3 returning 1) \
                 select exists (select from gone)"
            }
            Self::Result => "select body from queue.results where id = $1 and until > clock_timestamp()",
            Self::SetLimits => {
                "with wanted as (select $1::text as lane, $2::bigint as max_leased, $3::bigint as token, \
                 $4::bigint as bucket), \
                 gone as (delete from queue.limits l using wanted w \
                 where l.lane = w.lane and w.max_leased is null and w.token is null) \
                 insert into queue.limits (lane, max_leased, token, bucket, full_at) \
                 select lane, max_leased, token, bucket, 0 from wanted \
                 where max_leased is not null or token is not null \
                 on conflict (lane) do update set max_leased = excluded.max_leased, token = excluded.token, \
                 bucket = excluded.bucket, full_at = case when limits.token = excluded.token \
                 and limits.bucket = excluded.bucket then limits.full_at else 0 end"
            }
            Self::Depth => {
                // Each state by the index that has it alone.
                "with ready as (select count(*) as many, min(at) as since from queue.commands \
                 where partition = $1 and state = 0), \
                 delayed as (select count(*) as many, count(*) filter (where at <= clock_timestamp()) as due, \
                 min(at) filter (where at <= clock_timestamp()) as since from queue.commands \
                 where partition = $1 and state = 1) \
                 select ready.many + delayed.due, delayed.many - delayed.due, \
                 (select count(*) from queue.commands where partition = $1 and state = 2), \
                 (select count(*) from queue.commands where partition = $1 and state = 3), \
                 extract(epoch from clock_timestamp() - least(ready.since, delayed.since))::float8 \
                 from ready, delayed"
            }
            Self::Release => "select queue.release($1)",
            Self::Tidy => "select queue.tidy($1)",
        }
    }
}
