-- Version 1 of a queue's tables and functions. `queue.` stands for the schema of the queue.
--
-- A command is one row of `commands` from its acceptance until it is gone. Each call is one function, and so one statement
-- and one short transaction; none is open while a command runs. Inside a function, each statement sees what was committed
-- before that statement: what is checked after a lock was waited for is up to date. All times are clock_timestamp().
--
-- Texts that have names in them compare by their bytes ("C"): equal on every machine, and whatever the system's locale.

create table queue.meta (
    one boolean primary key default true check (one),
    version int not null,
    partitions int not null
);

-- The order of acceptance, of coming due and of dying.
create sequence queue.places;

-- The fences of leases: of the whole queue, so that a command whose id was used before has none that was there before. Not
-- cached: one that is given out later is higher.
create sequence queue.fences;

create table queue.commands (
    id text collate "C" primary key,
    partition int not null,
    lane text collate "C" not null,
    priority smallint not null,
    -- Among those of its priority, and among dead letters.
    place bigint not null,
    -- 0 ready, 1 delayed, 2 leased, 3 dead.
    state smallint not null,
    -- Ready since; due at; to be looked at whether its lease has ended; dead since.
    at timestamptz not null,
    -- When its lease ends. Not in any index: so that extending it can stay within its page (a HOT update).
    lease_until timestamptz,
    expires_at timestamptz,
    -- The last lease, and the last one that was ended by who had it.
    fence bigint not null default 0,
    settled bigint not null default 0,
    deliveries bigint not null default 0,
    max_deliveries bigint not null,
    retry_count bigint not null,
    -- It has been taken before: so it has its place, also where it is delayed.
    returned boolean not null default false,
    worker text,
    key text collate "C",
    key_window interval,
    keep_result interval,
    fingerprint text not null,
    kind text not null,
    -- Of the body, which is JSON as text: jsonb has no \u0000.
    format smallint not null,
    body text not null,
    -- Why it is dead, as JSON.
    reason text
) with (
    -- Room for the new version of a row beside the old one: extending needs no new index entries then, and what is dead can
    -- be cleaned page by page without a vacuum.
    fillfactor = 70,
    -- Every command is several dead rows. Vacuum after a fixed number of them, not after a fifth of the table, and do not
    -- let it pause: it is a small table, and claims are as slow as it has dead rows.
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

-- What claims look for is in indexes that have nothing else: they stay as small as what is ready, delayed or leased.
create index ready_of_lane on queue.commands (partition, lane, priority, place) where state = 0;
-- Of another type, so that it is of no use for the claims of one lane: these would read all lanes by it.
create index ready on queue.commands (partition, (priority::int), place) where state = 0;
create index delayed on queue.commands (at) where state = 1;
create index leased on queue.commands (at, lane) where state = 2;
create index dead on queue.commands (place) where state = 3;
create index expiring on queue.commands (expires_at) where expires_at is not null and state in (0, 1);

-- Of commands that have ended well, for a while: who has not heard the answer asks again.
create table queue.ended (
    id text collate "C" primary key,
    fence bigint not null,
    fingerprint text not null,
    until timestamptz not null
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
create index ended_until on queue.ended (until);

-- Idempotency keys; `until` is set when the command has ended.
create table queue.keys (
    key text collate "C" primary key,
    command_id text collate "C" not null,
    fingerprint text not null,
    until timestamptz
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
create index keys_until on queue.keys (until) where until is not null;

create table queue.results (
    id text collate "C" primary key,
    body text not null,
    until timestamptz not null
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
create index results_until on queue.results (until);

-- Limits to all workers together. The rate is a token bucket: `full_at` says when it is full if nothing more is taken.
-- All three are nanoseconds.
create table queue.limits (
    lane text collate "C" primary key,
    max_leased bigint,
    token bigint,
    bucket bigint,
    full_at bigint
) with (fillfactor = 50);

-- Puts commands in. Of each: 0 it is new, 1 it is there (under the id that is given), 2 its id is another command's, 3 its
-- key is, 4 what was in its way has just gone: ask again.
create function queue.enqueue(
    p_ids text[], p_partitions int[], p_lanes text[], p_kinds text[], p_priorities smallint[], p_delays bigint[],
    p_expiries bigint[], p_max_deliveries bigint[], p_retry_counts bigint[], p_keys text[], p_key_windows bigint[],
    p_keeps bigint[], p_fingerprints text[], p_bodies text[], p_format smallint
) returns table (ord bigint, outcome smallint, command_id text)
language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    -- In the order of the batch. By its place, a row is known to be of this call.
    v_places bigint[] := array(select nextval('queue.places') from generate_subscripts(p_ids, 1));
    v_new bigint;
    v_back bigint;
begin
    -- Ordered by id, so that two who put the same commands in wait for each other and not in a circle. A key that is taken
    -- is seen before anything is written: duplicates leave nothing to be vacuumed.
    insert into queue.commands (id, partition, lane, priority, place, state, at, expires_at, max_deliveries,
        retry_count, key, key_window, keep_result, fingerprint, kind, format, body)
    select a.id, a.partition, a.lane, a.priority, a.place, case when a.delay > 0 then 1 else 0 end,
        v_now + a.delay * interval '1 microsecond', v_now + a.expiry * interval '1 microsecond', a.max_deliveries,
        a.retry_count, a.key, a.key_window * interval '1 microsecond', a.keep * interval '1 microsecond',
        a.fingerprint, a.kind, p_format, a.body
    from unnest(p_ids, v_places, p_partitions, p_lanes, p_kinds, p_priorities, p_delays, p_expiries, p_max_deliveries,
        p_retry_counts, p_keys, p_key_windows, p_keeps, p_fingerprints, p_bodies)
        as a (id, place, partition, lane, kind, priority, delay, expiry, max_deliveries, retry_count, key, key_window,
            keep, fingerprint, body)
    where a.key is null or not exists (
        select from queue.keys k where k.key = a.key and (k.until is null or k.until > v_now))
    order by a.id, a.place
    on conflict (id) do nothing;
    get diagnostics v_new = row_count;

    -- Those that have ended a while ago are taken back. They are looked for after they were written: who ends a command
    -- deletes and remembers it in one transaction, which writing the same id waits for.
    delete from queue.commands c using unnest(p_ids, v_places) as a (id, place), queue.ended e
    where e.id = a.id and e.until > v_now and c.id = a.id and c.place = a.place;
    get diagnostics v_back = row_count;
    v_new := v_new - v_back;

    if cardinality(array_remove(p_keys, null)) > 0 then
        -- Keys that are free again are removed, and others not so much as locked: this may be part of a transaction that takes
        -- its time, and whoever ends the command of a key changes it.
        delete from queue.keys k using unnest(p_keys) as a (key) where k.key = a.key and k.until <= v_now;
        with wanted as (
            select distinct on (c.key) c.key, c.id, c.fingerprint
            from unnest(p_ids, v_places) as a (id, place) join queue.commands c on c.id = a.id and c.place = a.place
            where c.key is not null
            order by c.key, c.place
        ), won as (
            insert into queue.keys (key, command_id, fingerprint)
            select w.key, w.id, w.fingerprint from wanted w order by w.key
            on conflict (key) do nothing
            returning command_id
        )
        delete from queue.commands c using unnest(p_ids, v_places) as a (id, place)
        where c.id = a.id and c.place = a.place and c.key is not null and c.id not in (select w.command_id from won w);
        get diagnostics v_back = row_count;
        v_new := v_new - v_back;
    end if;

    if v_new = cardinality(p_ids) then
        return query select n::bigint, 0::smallint, p_ids[n] from generate_subscripts(p_ids, 1) n;
        return;
    end if;
    return query
    select a.ord, found.outcome::smallint,
        case when found.outcome = 3 or (found.outcome = 1 and known.fingerprint is null) then k.command_id else a.id end
    from unnest(p_ids, v_places, p_keys, p_fingerprints) with ordinality as a (id, place, key, fingerprint, ord)
    left join queue.commands c on c.id = a.id
    left join queue.ended e on e.id = a.id and e.until > v_now
    left join queue.keys k on k.key = a.key
    cross join lateral (select coalesce(c.fingerprint, e.fingerprint) as fingerprint) known
    cross join lateral (
        select case
            when c.place = a.place then 0
            when known.fingerprint = a.fingerprint then 1
            when known.fingerprint is not null then 2
            when k.fingerprint = a.fingerprint then 1
            when k.fingerprint is not null then 3
            else 4
        end as outcome
    ) found;
end
$$;

-- What happens by itself, as far as it is due: at most 1000 of each kind, so that no call takes long. What another one is at
-- is left to that.
create function queue.sweep() returns void
language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
begin
    -- Leases. One that was extended is looked at again when it ends. What becomes of each is said where it is locked: there it is
    -- seen as it is by then, and anywhere else as it was when the statement began.
    with due as materialized (
        select c.id, case
            when c.lease_until > v_now then 2
            when c.deliveries >= c.max_deliveries or c.expires_at <= v_now then 3
            else 0
        end as state
        from queue.commands c where c.state = 2 and c.at <= v_now
        order by c.at limit 1000 for update skip locked
    ), swept as (
        update queue.commands c set
            state = s.state,
            at = case when s.state = 2 then c.lease_until else v_now end,
            lease_until = case when s.state = 2 then c.lease_until end,
            worker = case when s.state = 2 then c.worker end,
            returned = true,
            place = case when s.state = 3 then nextval('queue.places') else c.place end,
            reason = case when s.state = 3 then
                case when c.deliveries >= c.max_deliveries then '{"kind":"too_many_deliveries"}'
                else '{"kind":"expired"}' end
            end
        from due s where c.id = s.id
        returning c.id, c.key, c.state
    )
    delete from queue.keys k using swept s where s.state = 3 and k.key = s.key and k.command_id = s.id;

    -- What nobody has taken in time.
    with late as materialized (
        select c.id from queue.commands c where c.expires_at <= v_now and c.state in (0, 1) and c.expires_at is not null
        order by c.expires_at limit 1000 for update skip locked
    ), buried as (
        update queue.commands c
        set state = 3, at = v_now, place = nextval('queue.places'), reason = '{"kind":"expired"}'
        from late where c.id = late.id
        returning c.id, c.key
    )
    delete from queue.keys k using buried b where k.key = b.key and k.command_id = b.id;

    -- What is due. A new one gets its place now, in the order of their times; one that comes back has it.
    with due as materialized (
        select c.id from queue.commands c where c.state = 1 and c.at <= v_now
        order by c.at limit 1000 for update skip locked
    ), placed as materialized (
        select due.id, nextval('queue.places') as place from due
    )
    update queue.commands c set state = 0, place = case when c.returned then c.place else p.place end
    from placed p where c.id = p.id;
end
$$;

-- Leases the next commands of a lane, none behind the given place, or of all lanes: one statement.
create function queue.take(
    p_partition int, p_lane text, p_max bigint, p_lease bigint, p_worker text, p_last_priority smallint, p_last_place bigint
) returns table (
    id text, lane text, kind text, priority smallint, fence bigint, deliveries bigint, retry_count bigint,
    format smallint, body text
)
language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_until timestamptz := v_now + p_lease * interval '1 microsecond';
begin
    if p_lane is not null then
        return query
        with picked as materialized (
            select c.id from queue.commands c
            where c.partition = p_partition and c.lane = p_lane and c.state = 0
                and (c.priority, c.place) <= (p_last_priority, p_last_place)
                and (c.expires_at is null or c.expires_at > v_now)
            order by c.priority, c.place limit p_max for update skip locked
        ), taken as (
            update queue.commands c set state = 2, at = v_until, lease_until = v_until, fence = nextval('queue.fences'),
                deliveries = c.deliveries + 1, worker = p_worker
            from picked where c.id = picked.id
            returning c.*
        )
        select t.id, t.lane, t.kind, t.priority, t.fence, t.deliveries, t.retry_count, t.format, t.body
        from taken t order by t.priority, t.place;
    else
        return query
        with picked as materialized (
            select c.id from queue.commands c
            where c.partition = p_partition and c.state = 0 and (c.expires_at is null or c.expires_at > v_now)
            order by c.priority::int, c.place limit p_max for update skip locked
        ), taken as (
            update queue.commands c set state = 2, at = v_until, lease_until = v_until, fence = nextval('queue.fences'),
                deliveries = c.deliveries + 1, worker = p_worker
            from picked where c.id = picked.id
            returning c.*
        )
        select t.id, t.lane, t.kind, t.priority, t.fence, t.deliveries, t.retry_count, t.format, t.body
        from taken t order by t.priority, t.place;
    end if;
end
$$;

-- Nanoseconds, as limits count.
create function queue.nanos() returns bigint
language sql volatile as $$ select floor(extract(epoch from clock_timestamp()) * 1000000)::bigint * 1000 $$;

-- How many more of a lane may be taken; null where it has no limit. Its row of `limits` is locked: nobody else takes any.
-- A lease counts until it was swept, also if it has ended: whoever extends it may have been faster.
create function queue.room(p_lane text) returns bigint
language plpgsql as $$
declare
    v_room bigint;
    v_limit queue.limits;
    v_leased bigint;
begin
    select l.* into v_limit from queue.limits l where l.lane = p_lane;
    if v_limit.max_leased is not null then
        select count(*) into v_leased from queue.commands c where c.state = 2 and c.lane = p_lane;
        v_room := greatest(v_limit.max_leased - v_leased, 0);
    end if;
    if v_limit.token is not null then
        v_room := least(v_room,
            greatest(v_limit.bucket - greatest(v_limit.full_at - queue.nanos(), 0), 0) / v_limit.token);
    end if;
    return v_room;
end
$$;

-- So many were taken of a lane that has limits.
create function queue.spend(p_lane text, p_taken bigint) returns void
language sql as $$
    update queue.limits set full_at = greatest(full_at, queue.nanos()) + p_taken * token
    where lane = p_lane and token is not null
$$;

-- The first command of each lane that has any ready. From lane to lane by the index, whatever is between: a long lane takes as
-- little time as a short one.
create function queue.heads(p_partition int) returns table (lane text, priority smallint, place bigint)
language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
begin
    return query
    with recursive lanes as (
        (select c.lane from queue.commands c where c.partition = p_partition and c.state = 0 order by c.lane limit 1)
        union all
        select next.lane from lanes l cross join lateral (
            select c.lane from queue.commands c where c.partition = p_partition and c.state = 0 and c.lane > l.lane
            order by c.lane limit 1
        ) next
    )
    select l.lane, head.priority, head.place from lanes l cross join lateral (
        select c.priority, c.place from queue.commands c
        where c.partition = p_partition and c.lane = l.lane and c.state = 0
            and (c.expires_at is null or c.expires_at > v_now)
        order by c.priority, c.place limit 1
    ) head;
end
$$;

-- Leases commands as a claim says; no lanes: of all, the best first.
create function queue.claim(
    p_partition int, p_max bigint, p_lanes text[], p_lane_max bigint[], p_lease bigint, p_worker text
) returns table (
    id text, lane text, kind text, priority smallint, fence bigint, deliveries bigint, retry_count bigint,
    format smallint, body text
)
language plpgsql as $$
#variable_conflict use_column
declare
    -- Behind all others.
    c_last_priority constant smallint := 32767;
    c_last_place constant bigint := 9223372036854775807;
    v_left bigint := p_max;
    v_limited boolean;
    v_some bigint;
    -- Of all lanes: their first commands, and how many may be taken, which is -1 before it was looked at and null without limit.
    v_lanes text[];
    v_priorities smallint[];
    v_places bigint[];
    v_rooms bigint[];
    v_best int;
    v_last_priority smallint;
    v_last_place bigint;
begin
    perform queue.sweep();
    -- Limits are locked first, and in one order: so what all workers together have is counted by one at a time.
    if cardinality(p_lanes) = 0 then
        perform from queue.limits l order by l.lane for update;
    else
        perform from queue.limits l where l.lane = any (p_lanes) order by l.lane for update;
    end if;
    v_limited := found;
    if cardinality(p_lanes) = 0 and not v_limited then
        return query select * from queue.take(p_partition, null, p_max, p_lease, p_worker, null, null);
        return;
    end if;

    -- Of all lanes, some with limits: of the one with the best command that has room, as many as are before the next lane's.
    if cardinality(p_lanes) = 0 then
        select array_agg(h.lane), array_agg(h.priority), array_agg(h.place), array_agg(-1::bigint)
        into v_lanes, v_priorities, v_places, v_rooms from queue.heads(p_partition) h;
    end if;
    while cardinality(p_lanes) = 0 and v_left > 0 loop
        select best.n, coalesce(best.next_priority, c_last_priority), coalesce(best.next_place, c_last_place)
        into v_best, v_last_priority, v_last_place
        from (
            select h.n, lead(h.priority) over o as next_priority, lead(h.place) over o as next_place
            from unnest(v_priorities, v_places) with ordinality as h (priority, place, n)
            where h.place is not null
            window o as (order by h.priority, h.place)
            order by h.priority, h.place limit 1
        ) best;
        exit when not found;
        if v_rooms[v_best] = -1 then
            v_rooms[v_best] := queue.room(v_lanes[v_best]);
        end if;
        v_some := least(v_left, v_rooms[v_best]);
        if v_some > 0 then
            return query select * from queue.take(
                p_partition, v_lanes[v_best], v_some, p_lease, p_worker, v_last_priority, v_last_place);
            get diagnostics v_some = row_count;
        end if;
        v_left := v_left - v_some;
        if v_some > 0 and v_rooms[v_best] is not null then
            v_rooms[v_best] := v_rooms[v_best] - v_some;
            perform queue.spend(v_lanes[v_best], v_some);
        end if;
        -- Where nothing was taken, there is no room, or others are at what is there: no more of this lane.
        select c.priority, c.place into v_last_priority, v_last_place from queue.commands c
        where v_some > 0 and c.partition = p_partition and c.lane = v_lanes[v_best] and c.state = 0
            and (c.expires_at is null or c.expires_at > clock_timestamp())
        order by c.priority, c.place limit 1;
        v_priorities[v_best] := v_last_priority;
        v_places[v_best] := v_last_place;
    end loop;

    for v_n in 1 .. cardinality(p_lanes) loop
        v_some := least(p_lane_max[v_n], v_left);
        if v_limited then
            v_some := least(v_some, queue.room(p_lanes[v_n]));
        end if;
        continue when v_some <= 0;
        return query select * from queue.take(
            p_partition, p_lanes[v_n], v_some, p_lease, p_worker, c_last_priority, c_last_place);
        get diagnostics v_some = row_count;
        v_left := v_left - v_some;
        if v_limited and v_some > 0 then
            perform queue.spend(p_lanes[v_n], v_some);
        end if;
    end loop;
end
$$;

-- Ends leases: 0 it has ended well, 1 it is given up, 2 it was not begun, 3 it is to be tried again. Of each: 0 it was done,
-- 1 it was done before, 2 the lease had ended.
create function queue.settle(
    p_ids text[], p_fences bigint[], p_actions smallint[], p_delays bigint[], p_reasons text[], p_results text[],
    p_memory bigint
) returns table (ord bigint, outcome smallint)
language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_ids text[];
    v_fences bigint[];
    v_more_ids text[];
    v_more_fences bigint[];
begin
    -- `state + 0` keeps the index of what is leased out of it: they are found by their ids.
    with asked as materialized (
        select distinct on (a.id, a.fence) a.id, a.fence, a.action, a.result
        from unnest(p_ids, p_fences, p_actions, p_results) with ordinality as a (id, fence, action, result, ord)
        order by a.id, a.fence, a.ord
    ), gone as (
        delete from queue.commands c using asked a
        where a.action = 0 and c.id = a.id and c.fence = a.fence and c.state + 0 = 2 and c.lease_until > v_now
        returning c.id, c.fence, c.fingerprint, c.key, c.key_window, c.keep_result, a.result
    ), remembered as (
        insert into queue.ended as e (id, fence, fingerprint, until)
        select g.id, g.fence, g.fingerprint, v_now + p_memory * interval '1 microsecond' from gone g
        on conflict (id) do update set fence = excluded.fence, fingerprint = excluded.fingerprint, until = excluded.until
    ), keyed as (
        update queue.keys k set until = v_now + g.key_window from gone g where k.key = g.key and k.command_id = g.id
    ), kept as (
        insert into queue.results as r (id, body, until)
        select g.id, g.result, v_now + g.keep_result from gone g where g.keep_result is not null and g.result is not null
        on conflict (id) do update set body = excluded.body, until = excluded.until
    )
    select coalesce(array_agg(g.id), '{}'), coalesce(array_agg(g.fence), '{}') into v_ids, v_fences from gone g;

    if cardinality(array_remove(p_actions, 0::smallint)) > 0 then
        with asked as materialized (
            select distinct on (a.id, a.fence) a.*
            from unnest(p_ids, p_fences, p_actions, p_delays, p_reasons, p_results) with ordinality
                as a (id, fence, action, delay, reason, result, ord)
            order by a.id, a.fence, a.ord
        ), held as materialized (
            select c.id, c.fence, a.action, a.reason, a.result,
                case
                    when a.action = 1 or (a.action = 3 and c.deliveries >= c.max_deliveries) then 3
                    when a.action = 3 and a.delay > 0 then 1
                    else 0
                end as state,
                v_now + case when a.action = 3 then a.delay else 0 end * interval '1 microsecond' as due
            from asked a join queue.commands c on c.id = a.id and c.fence = a.fence
            where a.action <> 0 and c.state + 0 = 2 and c.lease_until > v_now
            order by c.id for update of c
        ), changed as (
            update queue.commands c set
                state = h.state,
                at = case when h.state = 1 then h.due else v_now end,
                lease_until = null,
                worker = null,
                settled = c.fence,
                returned = true,
                retry_count = c.retry_count + case when h.action = 3 then 1 else 0 end,
                deliveries = c.deliveries - case when h.action = 2 then 1 else 0 end,
                place = case when h.state = 3 then nextval('queue.places') else c.place end,
                reason = case when h.state = 3 then h.reason end
            from held h where c.id = h.id
            returning c.id, c.fence, c.state, c.key, c.keep_result, h.result
        ), freed as (
            delete from queue.keys k using changed c where c.state = 3 and k.key = c.key and k.command_id = c.id
        ), kept as (
            insert into queue.results as r (id, body, until)
            select c.id, c.result, v_now + c.keep_result from changed c
            where c.keep_result is not null and c.result is not null
            on conflict (id) do update set body = excluded.body, until = excluded.until
        )
        select coalesce(array_agg(c.id), '{}'), coalesce(array_agg(c.fence), '{}') into v_more_ids, v_more_fences
        from changed c;
        v_ids := v_ids || v_more_ids;
        v_fences := v_fences || v_more_fences;
    end if;

    if cardinality(v_ids) = cardinality(p_ids) then
        return query select n::bigint, 0::smallint from generate_subscripts(p_ids, 1) n;
        return;
    end if;
    -- Of two lists.
    perform set_config('enable_hashjoin', 'on', true);
    return query
    select a.ord, (case
        when d.id is not null and a.nth = 1 then 0
        when c.settled = a.fence or e.fence = a.fence then 1
        else 2
    end)::smallint
    from (
        select t.*, row_number() over (partition by t.id, t.fence order by t.ord) as nth
        from unnest(p_ids, p_fences) with ordinality as t (id, fence, ord)
    ) a
    left join unnest(v_ids, v_fences) as d (id, fence) on d.id = a.id and d.fence = a.fence
    left join queue.commands c on c.id = a.id
    left join queue.ended e on e.id = a.id and c.id is null;
end
$$;

-- Leases anew what is leased; says which, once each.
create function queue.extend(p_ids text[], p_fences bigint[], p_lease bigint) returns table (ord bigint)
language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_until timestamptz := v_now + p_lease * interval '1 microsecond';
begin
    return query
    update queue.commands c set lease_until = v_until, at = least(c.at, v_until)
    from unnest(p_ids, p_fences) with ordinality as a (id, fence, ord)
    where c.id = a.id and c.fence = a.fence and c.state + 0 = 2 and c.lease_until > v_now
    returning a.ord;
end
$$;

-- A worker gives back all that it has, uncharged.
create function queue.release(p_worker text) returns bigint
language sql as $$
    with released as (
        update queue.commands c set state = 0, at = clock_timestamp(), lease_until = null, worker = null,
            returned = true, deliveries = c.deliveries - 1
        where c.state = 2 and c.worker = p_worker and c.lease_until > clock_timestamp()
        returning 1
    )
    select count(*) from released
$$;

-- Makes a dead letter's command ready, at the end of its lane.
create function queue.replay(p_id text) returns boolean
language sql as $$
    with replayed as (
        update queue.commands c set state = 0, at = clock_timestamp(), place = nextval('queue.places'), deliveries = 0,
            retry_count = 0, expires_at = null, reason = null
        where c.id = p_id and c.state + 0 = 3
        returning c.id, c.key, c.fingerprint
    ), keyed as (
        -- Other work may have its key since.
        insert into queue.keys (key, command_id, fingerprint)
        select r.key, r.id, r.fingerprint from replayed r where r.key is not null
        on conflict (key) do update
        set command_id = excluded.command_id, fingerprint = excluded.fingerprint, until = null
        where keys.until <= clock_timestamp()
    )
    select exists (select from replayed)
$$;

-- Forgets what is remembered for long enough: at most so many of each kind. Whether there may be more.
create function queue.tidy(p_max bigint) returns boolean
language plpgsql as $$
declare
    v_now timestamptz := clock_timestamp();
    v_some bigint;
    v_most bigint := 0;
begin
    delete from queue.ended where id in (
        select e.id from queue.ended e where e.until <= v_now order by e.until limit p_max for update skip locked);
    get diagnostics v_some = row_count;
    v_most := greatest(v_most, v_some);
    delete from queue.keys where key in (
        select k.key from queue.keys k where k.until <= v_now order by k.until limit p_max for update skip locked);
    get diagnostics v_some = row_count;
    v_most := greatest(v_most, v_some);
    delete from queue.results where id in (
        select r.id from queue.results r where r.until <= v_now order by r.until limit p_max for update skip locked);
    get diagnostics v_some = row_count;
    return greatest(v_most, v_some) >= p_max;
end
$$;

-- Plans are made when a function is first used, and kept, while the tables grow from nothing to whatever they will be. Each
-- statement here has one good plan at any size: by the index that is made for it, row by row. So there is no other choice;
-- costs that are thought to be high are no reason to compile.
do $do$
declare
    v_function regprocedure;
begin
    for v_function in
        select p.oid from pg_proc p join pg_class c on c.relnamespace = p.pronamespace
        where c.oid = 'queue.meta'::regclass
    loop
        execute format('alter function %s set jit = off set enable_seqscan = off set enable_bitmapscan = off '
            'set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off', v_function);
    end loop;
end
$do$;
