-- Praefect's database as it is since GitLab 15, with the triggers that notify its nodes of new repositories.

CREATE TABLE public.repositories (
    virtual_storage text NOT NULL, relative_path text NOT NULL, generation bigint, "primary" text,
    repository_id bigserial PRIMARY KEY, replica_path text
);
CREATE UNIQUE INDEX repository_lookup_index ON public.repositories (virtual_storage, relative_path);
CREATE INDEX repository_replica_path_index ON public.repositories (replica_path, virtual_storage);
CREATE TABLE public.storage_repositories (
    virtual_storage text NOT NULL, relative_path text NOT NULL, storage text NOT NULL, generation bigint NOT NULL,
    repository_id bigint NOT NULL REFERENCES public.repositories (repository_id) ON DELETE CASCADE,
    verified_at timestamptz, verification_leased_until timestamptz,
    PRIMARY KEY (virtual_storage, relative_path, storage)
);
CREATE UNIQUE INDEX storage_repositories_new_pkey ON public.storage_repositories (repository_id, storage);
CREATE TABLE public.repository_assignments (
    virtual_storage text NOT NULL, relative_path text NOT NULL, storage text NOT NULL,
    repository_id bigint NOT NULL REFERENCES public.repositories (repository_id) ON DELETE CASCADE,
    PRIMARY KEY (virtual_storage, relative_path, storage)
);
-- The later form of the notification: the paths of each virtual storage.
CREATE FUNCTION public.notify_on_change() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        message jsonb;
    BEGIN
        IF TG_OP = 'INSERT' THEN
            SELECT json_agg(each) INTO message FROM (
                SELECT jsonb_build_object('virtual_storage', virtual_storage,
                                          'relative_paths', array_agg(DISTINCT relative_path)) AS each
                  FROM new GROUP BY virtual_storage) paths;
        ELSIF TG_OP = 'DELETE' THEN
            SELECT json_agg(each) INTO message FROM (
                SELECT jsonb_build_object('virtual_storage', virtual_storage,
                                          'relative_paths', array_agg(DISTINCT relative_path)) AS each
                  FROM old GROUP BY virtual_storage) paths;
        ELSE
            SELECT json_agg(each) INTO message FROM (
                SELECT jsonb_build_object('virtual_storage', virtual_storage,
                                          'relative_paths', array_agg(DISTINCT relative_path)) AS each
                  FROM new FULL JOIN old USING (virtual_storage, relative_path) GROUP BY virtual_storage) paths;
        END IF;
        IF jsonb_array_length(message) > 0 THEN
            PERFORM pg_notify(TG_ARGV[0], message::text);
        END IF;
        RETURN NULL;
    END $$;

CREATE TABLE public.virtual_storages (
    virtual_storage text PRIMARY KEY, repositories_imported boolean NOT NULL DEFAULT false
);
CREATE TRIGGER notify_on_delete AFTER DELETE ON public.repositories REFERENCING OLD TABLE AS old
    FOR EACH STATEMENT EXECUTE FUNCTION public.notify_on_change('repositories_updates');
CREATE TRIGGER notify_on_insert AFTER INSERT ON public.storage_repositories REFERENCING NEW TABLE AS new
    FOR EACH STATEMENT EXECUTE FUNCTION public.notify_on_change('storage_repositories_updates');
CREATE TRIGGER notify_on_update AFTER UPDATE ON public.storage_repositories
    REFERENCING OLD TABLE AS old NEW TABLE AS new
    FOR EACH STATEMENT EXECUTE FUNCTION public.notify_on_change('storage_repositories_updates');
CREATE TRIGGER notify_on_delete AFTER DELETE ON public.storage_repositories REFERENCING OLD TABLE AS old
    FOR EACH STATEMENT EXECUTE FUNCTION public.notify_on_change('storage_repositories_updates');
