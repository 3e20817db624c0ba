-- GreenGrader's database: what is true about every submission.
--
-- Theory of operation
--   A submission (one zip, immutable) is graded by runs. A run is in exactly one state:
--
--     received ──> dispatched ──> placed ──> running ──> graded
--        │             │  ^          │          │
--        │             │  └──────────┴──────────┤   lease expired, handed back, or failed with attempts left
--        │             v                        v
--        └──────> cancelled                 abandoned   attempts used up, or the autograder cannot be built
--
--   Every arrow is one SQL function below, and nothing else changes runs.state: a trigger refuses any other
--   arrow and writes each one into run_events. Functions that leave `placed` or `running` take (run, attempt,
--   worker) and return the run, or nothing. Nothing means "no longer yours": log, drop, carry on. That fence is what
--   makes a result count exactly once. now() of this database is the only clock for leases.
--
--   Daemons are told, they do not poll: the trigger notifies channel greengrader_runs with "STATE RUN_ID", and
--   greengrader_workers when a worker can take jobs. Listeners look again every few minutes as a fallback only.
--
--   Who writes what: ingest: submissions, payloads, rejected · dispatcher: autograders, submission_archives ·
--   scheduler: leases, worker_autograders · receiver: results, workers · the operator's command: assignments.
--
-- Applied with `psql -f schema.sql` or by the program, any number of times. Another version is refused.

BEGIN;
SET LOCAL client_min_messages = warning;  -- "exists already" is what the second time is for
DO $$ BEGIN PERFORM pg_advisory_xact_lock(hashtext('greengrader schema')); END $$;

CREATE TABLE IF NOT EXISTS schema_version (
    version integer NOT NULL,
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    applied_at timestamptz NOT NULL DEFAULT now()
);
DO $$ BEGIN
    IF EXISTS (SELECT FROM schema_version WHERE version <> 1) THEN
        RAISE EXCEPTION 'this database holds schema version %, schema.sql is version 1',
            (SELECT version FROM schema_version) USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END $$;
INSERT INTO schema_version (version) VALUES (1) ON CONFLICT DO NOTHING;

-- ---------------------------------------------------------------------------------------------------- types
DO $$ BEGIN
    IF to_regtype('run_state') IS NULL THEN
        CREATE TYPE run_state AS ENUM (
            'received',    -- stored; waits for the dispatcher
            'dispatched',  -- prepared and handed to its backend; waits for a place
            'placed',      -- leased to a worker, which has not yet said that it started
            'running',     -- the worker has it
            'graded',      -- a result is stored, whatever the student's outcome
            'abandoned',   -- given up for a reason of ours; no score
            'cancelled');  -- taken out of the queue by staff
        CREATE TYPE run_outcome AS ENUM (
            'completed',        -- results.json is valid, whatever the exit status
            'timed_out', 'out_of_memory', 'no_results', 'invalid_results');  -- the student's failures, passed on
        CREATE TYPE backend AS ENUM ('docker', 'kubernetes');
        CREATE TYPE autograder_origin AS ENUM (
            'staff',     -- the official zip, registered for the assignment
            'derived');  -- recovered from a submission's payload, which was packed after a run
        CREATE TYPE parity AS ENUM ('match', 'differs', 'no_reference');
    END IF;
END $$;

-- ---------------------------------------------------------------------------------------------------- tables
CREATE TABLE IF NOT EXISTS autograders (
    digest text PRIMARY KEY CHECK (digest ~ '^[0-9a-f]{64}$'),  -- SHA-256 of source, run_autograder, Dockerfile, base image
    origin autograder_origin NOT NULL,
    base_image text NOT NULL,
    archive bytea NOT NULL,                         -- tar.gz: run_autograder, source/
    warnings text[] NOT NULL DEFAULT '{}',          -- what was mended or left out while it was made
    build_log text,                                 -- of the newest build that a worker reported
    created_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE autograders ALTER COLUMN archive SET STORAGE EXTERNAL;

CREATE TABLE IF NOT EXISTS assignments (            -- NULL in a limit means: the worker's setting decides
    assignment_id bigint PRIMARY KEY,               -- Gradescope's
    course_id bigint,
    title text,
    assignment_outline jsonb,
    backend backend NOT NULL DEFAULT 'docker',
    base_image text,
    cpus double precision CHECK (cpus > 0),         -- cores
    memory_bytes bigint CHECK (memory_bytes >= 16777216),
    timeout_s double precision CHECK (timeout_s > 0),
    network boolean,                                -- may the run reach the network
    priority integer NOT NULL DEFAULT 0,            -- higher goes first
    max_delay_s double precision NOT NULL DEFAULT 0 CHECK (max_delay_s >= 0),
    deadline timestamptz,                           -- graded before this, whatever the grid says
    autograder_digest text REFERENCES autograders,  -- the staff's own; NULL: derived from each payload
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS submissions (
    submission_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    submission_id bigint NOT NULL,                  -- Gradescope's; comes again with other content on a re-run
    payload_digest text NOT NULL CHECK (payload_digest ~ '^[0-9a-f]{64}$'),  -- SHA-256 of the zip
    assignment_id bigint NOT NULL REFERENCES assignments,
    course_id bigint,
    student_ids bigint[] NOT NULL DEFAULT '{}',     -- Gradescope's; several for a group
    student_names text[] NOT NULL DEFAULT '{}',
    student_emails text[] NOT NULL DEFAULT '{}',
    submission_method text,
    submitted_at timestamptz,                       -- Gradescope's created_at
    sender_ip text,                                 -- hostname -I of Gradescope's container
    metadata jsonb NOT NULL,                        -- submission_metadata.json
    gradescope_results jsonb,                       -- Gradescope's own results.json: the reference, never an input
    gradescope_score double precision,              -- points
    payload_bytes bigint NOT NULL CHECK (payload_bytes > 0),
    received_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT a_payload_is_stored_once UNIQUE (submission_id, payload_digest)
);
CREATE INDEX IF NOT EXISTS submissions_by_assignment ON submissions (assignment_id, submission_id);

CREATE TABLE IF NOT EXISTS payloads (               -- apart from submissions, so that listing never touches the bytes
    submission_key bigint PRIMARY KEY REFERENCES submissions ON DELETE CASCADE,
    zip bytea NOT NULL
);
ALTER TABLE payloads ALTER COLUMN zip SET STORAGE EXTERNAL;

CREATE TABLE IF NOT EXISTS submission_archives (    -- what goes into the container; made once, at the first dispatch
    submission_key bigint PRIMARY KEY REFERENCES submissions ON DELETE CASCADE,
    archive bytea NOT NULL                          -- tar.gz: submission/, submission_metadata.json
);
ALTER TABLE submission_archives ALTER COLUMN archive SET STORAGE EXTERNAL;

CREATE TABLE IF NOT EXISTS rejected (
    rejected_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    payload_digest text NOT NULL UNIQUE,            -- the same bytes again only count up
    reason text NOT NULL,                           -- for a course assistant to read
    payload bytea NOT NULL,
    times integer NOT NULL DEFAULT 1,
    received_at timestamptz NOT NULL DEFAULT now(), -- the last time
    retried_as bigint REFERENCES submissions        -- taken after all, by `rejected retry`
);
ALTER TABLE rejected ALTER COLUMN payload SET STORAGE EXTERNAL;

CREATE TABLE IF NOT EXISTS workers (
    worker text PRIMARY KEY CHECK (worker ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$'),  -- also its broker account
    node_ip text,
    cpu_model_name text,
    cpu_clock_rate double precision,                -- MHz
    cpu_sockets integer,
    cpu_cores integer,                              -- in all sockets
    cache_size bigint,                              -- KiB, last level
    memory_size bigint,                             -- MiB
    region text NOT NULL DEFAULT 'home',
    zone text NOT NULL DEFAULT '',
    watts_min double precision CHECK (watts_min >= 0),          -- W per core, idle
    watts_max double precision CHECK (watts_max >= watts_min),  -- W per core, full load
    slots integer NOT NULL DEFAULT 1 CHECK (slots >= 0),
    draining boolean NOT NULL DEFAULT false,        -- set by staff: finishes what it has, gets nothing new
    accepting boolean NOT NULL DEFAULT false,       -- said by the worker: false below its free-space limit
    last_seen_at timestamptz,                       -- NULL: said good-bye, or never seen
    registered_at timestamptz NOT NULL DEFAULT now()
);

-- Until when the receiver has read everything that workers had sent. A lease ends only if its worker stayed silent
-- up to such a moment: while receiver or broker are away nobody's silence means anything.
CREATE TABLE IF NOT EXISTS receiver_progress (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    caught_up_at timestamptz NOT NULL
);

CREATE TABLE IF NOT EXISTS worker_autograders (     -- whose source or image a worker has, or was just sent
    worker text NOT NULL REFERENCES workers ON DELETE CASCADE,
    digest text NOT NULL REFERENCES autograders ON DELETE CASCADE,
    sent_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (worker, digest)
);

CREATE TABLE IF NOT EXISTS runs (
    run_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    submission_key bigint NOT NULL REFERENCES submissions ON DELETE CASCADE,
    state run_state NOT NULL DEFAULT 'received',
    backend backend NOT NULL,
    priority integer NOT NULL,                      -- of the assignment, kept here for the queue's index
    deadline timestamptz,
    attempt integer NOT NULL DEFAULT 0,             -- number of leases so far; with run_id the fence
    failures integer NOT NULL DEFAULT 0,            -- attempts that ended by a fault of ours
    autograder_digest text REFERENCES autograders,
    worker text REFERENCES workers,                 -- of the current or last attempt
    lease_expires_at timestamptz,
    placement_reason text,                          -- one sentence: why there, why then
    expected_region text,                           -- that a pod was placed for; NULL: none was preferred
    expected_zone text,
    error text,                                     -- our last fault with this run, for people
    created_at timestamptz NOT NULL DEFAULT now(),
    dispatched_at timestamptz,
    placed_at timestamptz,
    started_at timestamptz,                         -- of the current or last attempt
    finished_at timestamptz,
    CONSTRAINT a_lease_while_held_only CHECK ((state IN ('placed', 'running')) = (lease_expires_at IS NOT NULL)),
    CONSTRAINT the_holder_is_known CHECK (state NOT IN ('placed', 'running') OR worker IS NOT NULL OR backend = 'kubernetes'),
    CONSTRAINT an_end_has_a_time CHECK ((state IN ('graded', 'abandoned', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT prepared_before_placed CHECK (state IN ('received', 'cancelled', 'abandoned') OR autograder_digest IS NOT NULL)
);
-- forbids two open runs of one submission: a double click on "rerun" grades once
CREATE UNIQUE INDEX IF NOT EXISTS one_open_run_per_submission ON runs (submission_key)
    WHERE state IN ('received', 'dispatched', 'placed', 'running');
CREATE INDEX IF NOT EXISTS runs_by_submission ON runs (submission_key, run_id);
CREATE INDEX IF NOT EXISTS queue_received ON runs (priority DESC, deadline, run_id) WHERE state = 'received';
CREATE INDEX IF NOT EXISTS queue_dispatched ON runs (backend, priority DESC, deadline, run_id) WHERE state = 'dispatched';
CREATE INDEX IF NOT EXISTS runs_held ON runs (worker) WHERE state IN ('placed', 'running');
CREATE INDEX IF NOT EXISTS leases ON runs (lease_expires_at) WHERE state IN ('placed', 'running');

CREATE TABLE IF NOT EXISTS run_events (             -- written by the trigger on runs alone
    run_id bigint NOT NULL REFERENCES runs ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    from_state run_state,
    to_state run_state NOT NULL,
    attempt integer NOT NULL,
    worker text,
    reason text
);
CREATE INDEX IF NOT EXISTS run_events_by_run ON run_events (run_id, at);

CREATE TABLE IF NOT EXISTS results (
    run_id bigint PRIMARY KEY REFERENCES runs ON DELETE CASCADE,  -- at most one result a run, ever
    attempt integer NOT NULL,
    outcome run_outcome NOT NULL,
    score double precision CHECK (score > '-Infinity' AND score < 'Infinity'),          -- points
    max_score double precision CHECK (max_score > '-Infinity' AND max_score < 'Infinity'),
    parity parity NOT NULL,                         -- our score against Gradescope's
    results jsonb NOT NULL,                         -- results.json as read; score 0 and the problem where it is not valid
    raw_results text,                               -- results.json where it could not be read, capped
    problem text,                                   -- why the outcome is not completed, for people
    output text NOT NULL,                           -- what the autograder printed, head and tail
    exit_status integer,
    oom_killed boolean NOT NULL DEFAULT false,      -- a process was; the results may be valid all the same
    started_at timestamptz NOT NULL,                -- the container's, by the engine
    finished_at timestamptz NOT NULL CHECK (finished_at >= started_at),
    wall_s double precision NOT NULL CHECK (wall_s >= 0),
    cpu_s double precision CHECK (cpu_s >= 0),      -- all cores; NULL: could not be measured
    peak_memory_bytes bigint CHECK (peak_memory_bytes >= 0),
    usage_method text NOT NULL,                     -- cgroup (exact), stats (sampled) or none
    cpus double precision NOT NULL,                 -- limit in force, cores
    memory_bytes bigint NOT NULL,                   -- limit in force
    watts_min double precision NOT NULL,            -- W per core used for energy_usage
    watts_max double precision NOT NULL,
    pue double precision NOT NULL CHECK (pue >= 1), -- power usage effectiveness of the site
    energy_method text NOT NULL,                    -- formula and where its watts come from
    energy_usage double precision CHECK (energy_usage >= 0),  -- kWh; NULL where CPU time is unknown
    carbon_intensity double precision CHECK (carbon_intensity >= 0),  -- gCO2e/kWh
    carbon_source text,                             -- where carbon_intensity comes from
    carbon_emission_from_compute double precision,  -- gCO2e
    carbon_emission_from_migration double precision,-- gCO2e; NULL: not accounted
    carbon_emission double precision,               -- gCO2e
    region text,                                    -- where it really ran
    zone text,
    node text,                                      -- worker or cluster node
    node_ip text,
    node_lat double precision,                      -- degrees
    node_lon double precision,
    image_built_s double precision,                 -- 0 where the image was there
    warnings text[] NOT NULL DEFAULT '{}',
    recorded_at timestamptz NOT NULL DEFAULT now()
);

-- ------------------------------------------------------------------------------------- the rules of the state machine
CREATE OR REPLACE FUNCTION check_run_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (OLD.state, NEW.state) NOT IN (
        ('received', 'dispatched'), ('received', 'cancelled'), ('received', 'abandoned'),
        ('dispatched', 'placed'), ('dispatched', 'cancelled'), ('dispatched', 'abandoned'),
        ('placed', 'running'), ('placed', 'graded'), ('placed', 'dispatched'), ('placed', 'abandoned'),
        ('running', 'graded'), ('running', 'dispatched'), ('running', 'abandoned'))
    THEN
        RAISE EXCEPTION 'run % cannot go from % to %', OLD.run_id, OLD.state, NEW.state USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.attempt <> OLD.attempt + (NEW.state = 'placed')::int THEN
        RAISE EXCEPTION 'run %: every lease is an attempt of its own', OLD.run_id USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.state = 'graded' AND NOT EXISTS (SELECT FROM results WHERE run_id = NEW.run_id AND attempt = NEW.attempt) THEN
        RAISE EXCEPTION 'run % cannot be graded without a result', OLD.run_id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION tell_run_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO run_events (run_id, from_state, to_state, attempt, worker, reason)
    VALUES (NEW.run_id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.state, NEW.attempt, NEW.worker,
            CASE NEW.state WHEN 'placed' THEN NEW.placement_reason WHEN 'running' THEN NULL ELSE NEW.error END);
    PERFORM pg_notify('greengrader_runs', NEW.state || ' ' || NEW.run_id);
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER run_is_received AFTER INSERT ON runs
    FOR EACH ROW EXECUTE FUNCTION tell_run_transition();
CREATE OR REPLACE TRIGGER run_transition_is_legal BEFORE UPDATE OF state ON runs
    FOR EACH ROW EXECUTE FUNCTION check_run_transition();
CREATE OR REPLACE TRIGGER run_transition_is_told AFTER UPDATE OF state ON runs
    FOR EACH ROW EXECUTE FUNCTION tell_run_transition();

CREATE OR REPLACE FUNCTION refuse_new_run_in_another_state() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a run begins as received' USING ERRCODE = 'check_violation';
END $$;
CREATE OR REPLACE TRIGGER run_begins_as_received BEFORE INSERT ON runs
    FOR EACH ROW WHEN (NEW.state <> 'received') EXECUTE FUNCTION refuse_new_run_in_another_state();

-- ---------------------------------------------------------------------------------------- one function per arrow
-- (new) -> received. One element of `batch` a payload; its bytes follow by COPY in the same transaction.
CREATE OR REPLACE FUNCTION receive_submissions(batch jsonb)
RETURNS TABLE (place integer, submission_key bigint, run_id bigint)  -- nothing for a place: an exact duplicate
LANGUAGE plpgsql AS $$
DECLARE item jsonb; item_place integer := -1; new_key bigint; the_assignment assignments;
BEGIN
    FOR item IN SELECT jsonb_array_elements(batch) LOOP
        item_place := item_place + 1;
        INSERT INTO assignments AS a (assignment_id, course_id, title, assignment_outline)
            VALUES ((item->>'assignment_id')::bigint, (item->>'course_id')::bigint, item->>'assignment_title',
                    NULLIF(item->'assignment_outline', 'null'))
            ON CONFLICT (assignment_id) DO NOTHING;
        INSERT INTO submissions (submission_id, payload_digest, assignment_id, course_id, student_ids, student_names,
                student_emails, submission_method, submitted_at, sender_ip, metadata, gradescope_results,
                gradescope_score, payload_bytes)
            VALUES ((item->>'submission_id')::bigint, item->>'payload_digest', (item->>'assignment_id')::bigint,
                (item->>'course_id')::bigint,
                ARRAY(SELECT jsonb_array_elements_text(item->'student_ids')::bigint),
                ARRAY(SELECT jsonb_array_elements_text(item->'student_names')),
                ARRAY(SELECT jsonb_array_elements_text(item->'student_emails')),
                item->>'submission_method', (item->>'submitted_at')::timestamptz, item->>'sender_ip',
                item->'metadata', NULLIF(item->'gradescope_results', 'null'),
                (item->>'gradescope_score')::double precision, (item->>'payload_bytes')::bigint)
            ON CONFLICT ON CONSTRAINT a_payload_is_stored_once DO NOTHING
            RETURNING submissions.submission_key INTO new_key;
        CONTINUE WHEN NOT FOUND;
        SELECT * INTO the_assignment FROM assignments a WHERE a.assignment_id = (item->>'assignment_id')::bigint;
        place := item_place;
        submission_key := new_key;
        INSERT INTO runs (submission_key, backend, priority, deadline)
            VALUES (new_key, the_assignment.backend, the_assignment.priority, the_assignment.deadline)
            RETURNING runs.run_id INTO run_id;
        RETURN NEXT;
    END LOOP;
END $$;

-- (new) -> received, for a submission that is stored already. Nothing: one is open, or there is no such submission.
CREATE OR REPLACE FUNCTION rerun_submission(the_key bigint) RETURNS SETOF runs LANGUAGE sql AS $$
    INSERT INTO runs (submission_key, backend, priority, deadline)
        SELECT s.submission_key, a.backend, a.priority, a.deadline
        FROM submissions s JOIN assignments a USING (assignment_id) WHERE s.submission_key = the_key
        ON CONFLICT DO NOTHING
        RETURNING *;
$$;

-- received -> dispatched
CREATE OR REPLACE FUNCTION dispatch_run(the_run bigint, the_digest text) RETURNS SETOF runs LANGUAGE sql AS $$
    UPDATE runs SET state = 'dispatched', autograder_digest = the_digest, dispatched_at = now(), error = NULL
        WHERE run_id = the_run AND state = 'received' RETURNING *;
$$;

-- dispatched -> placed, for as many of the pairs as are still free to go and have a slot
CREATE OR REPLACE FUNCTION place_runs(the_runs bigint[], the_workers text[], the_reasons text[], lease_s double precision)
RETURNS SETOF runs LANGUAGE plpgsql
SET plan_cache_mode = force_custom_plan  -- one for arrays of any length expects ten runs: 500 take it ten times as long
AS $$
BEGIN
    -- two schedulers may both see the last slot: whoever locks the worker first gets it
    PERFORM FROM workers w WHERE w.worker = ANY (the_workers) ORDER BY w.worker FOR UPDATE;
    RETURN QUERY
    WITH wanted AS (
        SELECT r, w, reason, row_number() OVER (PARTITION BY w ORDER BY place) AS nth
        FROM unnest(the_runs, the_workers, the_reasons) WITH ORDINALITY AS u (r, w, reason, place)
    ), held AS (  -- counted in one go: asked for each worker, a planner without statistics reads all leases each time
        SELECT worker, count(*) AS slots FROM runs WHERE state IN ('placed', 'running') GROUP BY worker
    ), free AS (
        SELECT w.worker, w.slots - coalesce(held.slots, 0) AS slots FROM workers w LEFT JOIN held USING (worker)
        WHERE w.worker = ANY (the_workers) AND NOT w.draining AND w.accepting
    )
    UPDATE runs SET state = 'placed', attempt = attempt + 1, worker = wanted.w, placement_reason = wanted.reason,
            placed_at = now(), started_at = NULL, lease_expires_at = now() + make_interval(secs => lease_s)
        FROM wanted JOIN free ON free.worker = wanted.w AND wanted.nth <= free.slots
        WHERE runs.run_id = wanted.r AND runs.state = 'dispatched'
        RETURNING runs.*;
END $$;

-- dispatched -> placed, in a pod: the lease belongs to the process that watches it (pod.sh, or the dispatcher)
CREATE OR REPLACE FUNCTION place_pod(the_run bigint, reason text, region text, zone text, lease_s double precision)
RETURNS SETOF runs LANGUAGE sql AS $$
    UPDATE runs SET state = 'placed', attempt = attempt + 1, worker = NULL, placement_reason = reason,
            expected_region = region, expected_zone = zone,
            placed_at = now(), started_at = NULL, lease_expires_at = now() + make_interval(secs => lease_s)
        WHERE run_id = the_run AND state = 'dispatched' AND backend = 'kubernetes' RETURNING *;
$$;

-- placed -> running
CREATE OR REPLACE FUNCTION start_run(the_run bigint, the_attempt integer, the_worker text)
RETURNS SETOF runs LANGUAGE sql AS $$
    UPDATE runs SET state = 'running', started_at = now()
        WHERE run_id = the_run AND attempt = the_attempt AND worker IS NOT DISTINCT FROM the_worker
            AND state = 'placed' RETURNING *;
$$;

-- placed, running -> graded. `result` has the columns of results.
CREATE OR REPLACE FUNCTION finish_run(the_run bigint, the_attempt integer, the_worker text, result jsonb)
RETURNS SETOF runs LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM runs WHERE run_id = the_run AND attempt = the_attempt AND worker IS NOT DISTINCT FROM the_worker
        AND state IN ('placed', 'running') FOR UPDATE;
    IF NOT FOUND THEN RETURN; END IF;
    INSERT INTO results SELECT (jsonb_populate_record(NULL::results, jsonb_build_object(
        'oom_killed', false, 'warnings', '[]'::jsonb, 'recorded_at', now()) || result
        || jsonb_build_object('run_id', the_run, 'attempt', the_attempt))).*;
    RETURN QUERY UPDATE runs SET state = 'graded', finished_at = now(), lease_expires_at = NULL, error = NULL
        WHERE run_id = the_run RETURNING *;
END $$;

-- placed, running -> dispatched or abandoned: the attempt ended by a fault of ours
CREATE OR REPLACE FUNCTION fail_run(the_run bigint, the_attempt integer, the_worker text, reason text,
                                    for_good boolean, max_attempts integer)
RETURNS SETOF runs LANGUAGE sql AS $$
    UPDATE runs SET failures = failures + 1, error = reason, lease_expires_at = NULL,
            state = CASE WHEN for_good OR failures + 1 >= max_attempts THEN 'abandoned' ELSE 'dispatched' END::run_state,
            finished_at = CASE WHEN for_good OR failures + 1 >= max_attempts THEN now() END
        WHERE run_id = the_run AND attempt = the_attempt AND worker IS NOT DISTINCT FROM the_worker
            AND state IN ('placed', 'running') RETURNING *;
$$;

-- placed, running -> dispatched: handed back in order (the worker stops, or lacks the autograder); costs no attempt
CREATE OR REPLACE FUNCTION release_run(the_run bigint, the_attempt integer, the_worker text, reason text)
RETURNS SETOF runs LANGUAGE sql AS $$
    UPDATE runs SET state = 'dispatched', lease_expires_at = NULL, error = reason
        WHERE run_id = the_run AND attempt = the_attempt AND worker IS NOT DISTINCT FROM the_worker
            AND state IN ('placed', 'running') RETURNING *;
$$;

-- placed, running -> dispatched or abandoned, where the lease has run out
CREATE OR REPLACE FUNCTION expire_leases(max_attempts integer) RETURNS SETOF runs LANGUAGE sql AS $$
    UPDATE runs SET failures = failures + 1, lease_expires_at = NULL,
            error = format('attempt %s: %s was not heard of before the lease ran out', attempt, worker),
            state = CASE WHEN failures + 1 >= max_attempts THEN 'abandoned' ELSE 'dispatched' END::run_state,
            finished_at = CASE WHEN failures + 1 >= max_attempts THEN now() END
        WHERE run_id IN (SELECT run_id FROM runs WHERE state IN ('placed', 'running') AND backend = 'docker' AND lease_expires_at < now()
                         AND lease_expires_at < (SELECT caught_up_at FROM receiver_progress) FOR UPDATE SKIP LOCKED) RETURNING *;
$$;

-- received, dispatched -> cancelled
CREATE OR REPLACE FUNCTION cancel_run(the_run bigint, reason text) RETURNS SETOF runs LANGUAGE sql AS $$
    UPDATE runs SET state = 'cancelled', finished_at = now(), error = reason
        WHERE run_id = the_run AND state IN ('received', 'dispatched') RETURNING *;
$$;

-- received, dispatched -> abandoned: it cannot be prepared or sent, ever
CREATE OR REPLACE FUNCTION abandon_run(the_run bigint, reason text) RETURNS SETOF runs LANGUAGE sql AS $$
    UPDATE runs SET state = 'abandoned', finished_at = now(), error = reason
        WHERE run_id = the_run AND state IN ('received', 'dispatched') RETURNING *;
$$;

-- ------------------------------------------------------------------------------------------ workers and leases
-- Keeps the leases of the runs that a living worker names; returns those that are still its own.
CREATE OR REPLACE FUNCTION extend_leases(the_worker text, the_runs bigint[], the_attempts integer[], lease_s double precision)
RETURNS SETOF bigint LANGUAGE sql AS $$
    UPDATE runs SET lease_expires_at = now() + make_interval(secs => lease_s)
        FROM unnest(the_runs, the_attempts) AS named (r, a)
        WHERE run_id = named.r AND attempt = named.a AND worker = the_worker AND state IN ('placed', 'running')
        RETURNING run_id;
$$;

-- Keeps the leases of the pods that a living process watches; returns the runs that are still its own.
CREATE OR REPLACE FUNCTION extend_pod_leases(the_runs bigint[], the_attempts integer[], lease_s double precision)
RETURNS SETOF bigint LANGUAGE sql AS $$
    UPDATE runs SET lease_expires_at = now() + make_interval(secs => lease_s)
        FROM unnest(the_runs, the_attempts) AS named (r, a)
        WHERE run_id = named.r AND attempt = named.a AND backend = 'kubernetes' AND state IN ('placed', 'running')
        RETURNING run_id;
$$;

-- Takes over the runs whose watching process let the lease run out; each goes to one taker.
CREATE OR REPLACE FUNCTION adopt_pods(most integer, lease_s double precision, only_run bigint DEFAULT NULL)
RETURNS SETOF runs LANGUAGE sql AS $$
    UPDATE runs SET lease_expires_at = now() + make_interval(secs => lease_s)
        WHERE run_id IN (SELECT run_id FROM runs WHERE state IN ('placed', 'running') AND backend = 'kubernetes'
                         AND lease_expires_at < now() AND (only_run IS NULL OR run_id = only_run)
                         ORDER BY run_id LIMIT most FOR UPDATE SKIP LOCKED) RETURNING *;
$$;

CREATE OR REPLACE FUNCTION receiver_caught_up(at timestamptz) RETURNS void LANGUAGE sql AS $$
    INSERT INTO receiver_progress AS p (caught_up_at) VALUES (at)
        ON CONFLICT (only_row) DO UPDATE SET caught_up_at = greatest(p.caught_up_at, at);
$$;

CREATE OR REPLACE FUNCTION register_worker(registration jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO workers (worker, node_ip, cpu_model_name, cpu_clock_rate, cpu_sockets, cpu_cores, cache_size, memory_size,
                         region, zone, watts_min, watts_max, slots)
        SELECT r.worker, r.node_ip, r.cpu_model_name, r.cpu_clock_rate, r.cpu_sockets, r.cpu_cores, r.cache_size,
               r.memory_size, r.region, r.zone, r.watts_min, r.watts_max, r.slots
        FROM jsonb_populate_record(NULL::workers, registration) AS r
    ON CONFLICT (worker) DO UPDATE SET (node_ip, cpu_model_name, cpu_clock_rate, cpu_sockets, cpu_cores, cache_size,
            memory_size, region, zone, watts_min, watts_max, slots, registered_at) =
        (EXCLUDED.node_ip, EXCLUDED.cpu_model_name, EXCLUDED.cpu_clock_rate, EXCLUDED.cpu_sockets, EXCLUDED.cpu_cores,
         EXCLUDED.cache_size, EXCLUDED.memory_size, EXCLUDED.region, EXCLUDED.zone, EXCLUDED.watts_min,
         EXCLUDED.watts_max, EXCLUDED.slots, now());
$$;

-- A heartbeat: the worker lives, has these autograders, takes jobs or not. False: nobody registered it.
CREATE OR REPLACE FUNCTION see_worker(the_worker text, the_slots integer, is_accepting boolean, digests text[])
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE before workers;
BEGIN
    SELECT * INTO before FROM workers WHERE worker = the_worker FOR UPDATE;
    IF NOT FOUND THEN RETURN false; END IF;
    UPDATE workers SET last_seen_at = now(), slots = the_slots, accepting = is_accepting WHERE worker = the_worker;
    -- what was sent a moment ago may not be in this heartbeat yet
    DELETE FROM worker_autograders WHERE worker = the_worker AND digest <> ALL (digests)
        AND sent_at < now() - interval '60 seconds';
    INSERT INTO worker_autograders (worker, digest) SELECT the_worker, digest FROM autograders WHERE digest = ANY (digests)
        ON CONFLICT DO NOTHING;
    IF is_accepting AND (before.last_seen_at IS NULL OR NOT before.accepting OR before.slots <> the_slots) THEN
        PERFORM pg_notify('greengrader_workers', the_worker);
    END IF;
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION lose_worker(the_worker text) RETURNS void LANGUAGE sql AS $$
    UPDATE workers SET last_seen_at = NULL, accepting = false WHERE worker = the_worker;
$$;

CREATE OR REPLACE FUNCTION drain_worker(the_worker text, is_draining boolean) RETURNS SETOF workers LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY UPDATE workers SET draining = is_draining WHERE worker = the_worker RETURNING *;
    PERFORM pg_notify('greengrader_workers', the_worker);
END $$;

-- ------------------------------------------------------------------------------------------------------- staff
-- Changes the given columns; queued runs follow. An unknown column is refused by its name.
CREATE OR REPLACE FUNCTION set_assignment(the_assignment bigint, changes jsonb) RETURNS SETOF assignments LANGUAGE plpgsql AS $$
DECLARE changed assignments; unknown text;
BEGIN
    SELECT string_agg(key, ', ') INTO unknown FROM jsonb_object_keys(changes) AS key
        WHERE key NOT IN ('backend', 'base_image', 'cpus', 'memory_bytes', 'timeout_s', 'network', 'priority', 'max_delay_s',
                          'deadline', 'autograder_digest');
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'an assignment has no setting %', unknown USING ERRCODE = 'undefined_column';
    END IF;
    INSERT INTO assignments (assignment_id) VALUES (the_assignment) ON CONFLICT DO NOTHING;
    SELECT * INTO changed FROM assignments WHERE assignment_id = the_assignment FOR UPDATE;
    changed := jsonb_populate_record(changed, changes);
    UPDATE assignments SET (backend, base_image, cpus, memory_bytes, timeout_s, network, priority, max_delay_s, deadline,
            autograder_digest) = (changed.backend, changed.base_image, changed.cpus, changed.memory_bytes, changed.timeout_s,
            changed.network, changed.priority, changed.max_delay_s, changed.deadline, changed.autograder_digest)
        WHERE assignment_id = the_assignment;
    UPDATE runs SET priority = changed.priority, deadline = changed.deadline,
            backend = CASE WHEN state = 'received' THEN changed.backend ELSE runs.backend END
        FROM submissions s WHERE s.submission_key = runs.submission_key AND s.assignment_id = the_assignment
            AND runs.state IN ('received', 'dispatched');
    RETURN QUERY SELECT * FROM assignments WHERE assignment_id = the_assignment;
END $$;

CREATE OR REPLACE FUNCTION reject_payload(the_digest text, the_reason text) RETURNS bigint LANGUAGE sql AS $$
    UPDATE rejected SET times = times + 1, reason = the_reason, received_at = now()
        WHERE payload_digest = the_digest RETURNING rejected_id;
$$;

-- --------------------------------------------------------------------------------------- what operators read
-- One row a submission: its newest payload, its newest run.
CREATE OR REPLACE VIEW submission_status AS
    SELECT DISTINCT ON (s.submission_id)
        s.submission_id, s.assignment_id, r.state, g.outcome, g.score, s.gradescope_score, r.attempt, r.backend, r.worker,
        coalesce(g.region, w.region) AS region, g.energy_usage AS energy_kwh, s.received_at, r.finished_at AS graded_at, r.error
    FROM submissions s
    JOIN runs r USING (submission_key)
    LEFT JOIN results g USING (run_id)
    LEFT JOIN workers w ON w.worker = r.worker
    ORDER BY s.submission_id, s.submission_key DESC, r.run_id DESC;

-- One row a worker: does it live, what is free. Silence is judged by who asks: seconds since it was last seen.
CREATE OR REPLACE VIEW worker_status AS
    SELECT w.*, extract(epoch FROM now() - w.last_seen_at)::double precision AS silent_s, coalesce(h.held, 0)::integer AS held
    FROM workers w
    LEFT JOIN (SELECT worker, count(*) AS held FROM runs WHERE state IN ('placed', 'running') GROUP BY worker) h USING (worker);

-- One row a run, every run of every submission.
CREATE OR REPLACE VIEW run_status AS
    SELECT r.run_id, r.submission_key, s.submission_id, s.assignment_id, r.state, g.outcome, g.score, r.attempt, r.failures,
        r.backend, r.worker, r.autograder_digest, a.origin AS autograder_origin, r.placement_reason, r.error,
        r.created_at, r.dispatched_at, r.placed_at, r.started_at, r.finished_at
    FROM runs r
    JOIN submissions s USING (submission_key)
    LEFT JOIN results g USING (run_id)
    LEFT JOIN autograders a ON a.digest = r.autograder_digest;

-- One row a submission for spreadsheets: its newest result, and the state of its newest run, which may be another.
CREATE OR REPLACE VIEW result_export AS
    SELECT DISTINCT ON (s.assignment_id, s.submission_id)
        s.submission_id, s.assignment_id, s.course_id, r.run_id,
        first_value(r.state) OVER (PARTITION BY s.assignment_id, s.submission_id ORDER BY s.submission_key DESC, r.run_id DESC)
            AS state,
        g.outcome, g.score, g.max_score, s.gradescope_score, g.parity, g.wall_s, g.cpu_s, g.peak_memory_bytes,
        g.energy_usage AS energy_kwh, g.carbon_emission AS carbon_emission_g, g.carbon_intensity, g.carbon_source,
        g.region, g.node AS worker, s.submitted_at, s.received_at, g.recorded_at AS graded_at, s.payload_digest,
        r.autograder_digest, s.student_ids, s.student_names, s.student_emails
    FROM submissions s
    JOIN runs r USING (submission_key)
    LEFT JOIN results g USING (run_id)
    ORDER BY s.assignment_id, s.submission_id, (g.run_id IS NULL), s.submission_key DESC, r.run_id DESC;

-- One row an assignment with its newest runs counted.
CREATE OR REPLACE VIEW assignment_status AS
    SELECT a.*, g.created_at AS autograder_created_at, g.base_image AS autograder_base_image, g.warnings AS autograder_warnings,
        coalesce(n.submissions, 0) AS submissions, coalesce(n.open, 0) AS open, coalesce(n.graded, 0) AS graded,
        coalesce(n.abandoned, 0) AS abandoned, coalesce(n.differs, 0) AS differs
    FROM assignments a
    LEFT JOIN autograders g ON g.digest = a.autograder_digest
    LEFT JOIN (SELECT assignment_id, count(*) AS submissions, count(*) FILTER (WHERE state = 'graded') AS graded,
                   count(*) FILTER (WHERE state = 'abandoned') AS abandoned, count(*) FILTER (WHERE parity = 'differs') AS differs,
                   count(*) FILTER (WHERE state IN ('received', 'dispatched', 'placed', 'running')) AS open
               FROM result_export GROUP BY assignment_id) AS n USING (assignment_id);

-- One row a rejected payload, without its bytes.
CREATE OR REPLACE VIEW rejected_status AS
    SELECT j.rejected_id, j.received_at, j.times, octet_length(j.payload) AS payload_bytes, s.submission_id AS retried_as,
        j.payload_digest, j.reason
    FROM rejected j LEFT JOIN submissions s ON s.submission_key = j.retried_as;

COMMIT;
