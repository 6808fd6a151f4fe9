"""The role that `headrace init --sql` creates can move repositories without further privileges."""

from __future__ import annotations

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from consumers.routing.placement import md5_home, rendezvous_home
from tests.administering import whole_script
from tests.consumers.gitserver.driver import World, drive
from tests.consumers.gitservers import NODES, shards

pytestmark = pytest.mark.stack

NAME = next(name for n in range(99) if md5_home(name := f"github.com/a/{n}", NODES) != rendezvous_home(name, NODES))


def test_role_created_by_init_sql_can_move_repositories(world: World) -> None:
    role = f"mover-of {world.connection.info.dbname}"
    main = world.settings.database("main")
    mine = main.model_copy(
        update={
            "dsn": SecretStr(make_conninfo(main.dsn.get_secret_value(), user=role, password="s3cret")),
            "tables": ("public.repo", "public.gitserver_repos"),
        }
    )
    settings = world.settings.model_copy(update={"databases": {"main": mine}})
    name = sql.Identifier(role)
    # The log of the tests' trigger belongs to the application.
    world.connection.execute("DROP TRIGGER log_shard ON gitserver_repos")
    try:
        world.connection.execute(whole_script(settings))
        world.connection.execute(sql.SQL("ALTER ROLE {} PASSWORD 's3cret'").format(name))
        world.add([NAME])
        drive(settings)
        assert world.disks.copies(NAME) == [world.disks.new(NAME)]
        assert shards(world.connection) == {NAME: rendezvous_home(NAME, NODES)}
    finally:
        world.connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))
