CREATE OR REPLACE FUNCTION headrace.guard() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = '' AS $guard$
-- Arguments: the gitlab schema, and the key of its advisory lock.
DECLARE
    here text;
    owner text;
BEGIN
    -- Held until the transaction ends. A change of owner locks it exclusively: it waits for this transaction, or it was
    -- committed before the statements below run.
    PERFORM pg_catalog.pg_advisory_xact_lock_shared(TG_ARGV[1]::pg_catalog.int8);
    IF pg_catalog.current_setting('transaction_isolation') <> 'read committed' THEN
        -- This transaction's snapshot may be older than the lock and show a former owner. An insert that conflicts with
        -- a row invisible to the snapshot fails here (40001); one that conflicts with a visible row does nothing.
        -- Neither writes anything, while a row lock would write to the row.
        INSERT INTO headrace.schema_ownership (gitlab_schema, owner) VALUES (TG_ARGV[0], '') ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            INSERT INTO headrace.database (name) VALUES ('') ON CONFLICT DO NOTHING;
        END IF;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
                MESSAGE = pg_catalog.format('headrace has no owner recorded for %s', TG_ARGV[0]);
        END IF;
    END IF;
    SELECT d.name, o.owner INTO here, owner
      FROM headrace.database d JOIN headrace.schema_ownership o ON o.gitlab_schema = TG_ARGV[0];
    IF here = owner THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'read_only_sql_transaction',
        MESSAGE = pg_catalog.format(
            '%I.%I may not be written in database %s: %s is owned by %s',
            TG_TABLE_SCHEMA, TG_TABLE_NAME, coalesce(here, 'without a name'), TG_ARGV[0], coalesce(owner, 'no database')),
        HINT = 'Write to the database that owns it; see headrace.schema_ownership.';
END $guard$;
REVOKE ALL ON FUNCTION headrace.guard() FROM PUBLIC;
