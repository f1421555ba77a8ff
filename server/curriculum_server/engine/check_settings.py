"""Settings of a store that can lose what it acknowledged, or give the ledger away."""

from __future__ import annotations

from curriculum_server.engine.findings import Findings
from curriculum_server.store.connection import TORN_TAIL_FIXED
from curriculum_server.store.settings import Settings


def check_settings(settings: Settings, findings: Findings) -> None:
    """Note what is wrong."""
    if settings.refused:
        findings.warning(
            "settings_unreadable",
            f"the store does not answer {', '.join(settings.refused)}: what it would say of "
            "persistence, memory and replication is not checked",
            "look at these settings where the store is managed",
        )
    _check_persistence(settings, findings)
    _check_memory(settings, findings)
    _check_place(settings, findings)


def _check_persistence(settings: Settings, findings: Findings) -> None:
    info = settings.info
    if "aof_enabled" not in info:
        return
    if not info["aof_enabled"]:
        _check_snapshots(settings, findings)
        return
    fixed = settings.kind == "valkey" and settings.version_numbers >= TORN_TAIL_FIXED
    if not fixed:
        findings.warning(
            "torn_tail",
            f"{settings} can lose or double writes after an append-only file was cut short and the "
            "store restarted twice (valkey#4342)",
            "`BGREWRITEAOF` after every unclean stop; from valkey 9.1.2 on it is not needed",
        )
    if settings.appendfsync not in (None, "always"):
        lost = "the last second" if settings.appendfsync == "everysec" else "half a minute or so"
        findings.warning(
            "append_only_lags",
            f"appendfsync={settings.appendfsync}: if the machine dies, {lost} of what was "
            "acknowledged is lost",
            "`CONFIG SET appendfsync always` costs a third to a half of the report rate; for the "
            "embedded store it is --appendfsync always",
        )
    for name in ("aof_last_write_status", "aof_last_bgrewrite_status"):
        if info.get(name, "ok") != "ok":
            findings.error(
                "append_only_failed",
                f"{name}={info[name]}: the append-only file could not be written",
                "make room on the store's disk and see its log, then `BGREWRITEAOF`",
            )


def _check_snapshots(settings: Settings, findings: Findings) -> None:
    info = settings.info
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        findings.error(
            "snapshot_failed",
            f"rdb_last_bgsave_status={info['rdb_last_bgsave_status']}: the last snapshot could "
            "not be written",
            "make room on the store's disk and see its log, then `BGSAVE`",
        )
    findings.warning(
        "persistence_off",
        "appendonly=no: if the store stops, all that was acknowledged since its last snapshot is "
        "lost, and without snapshots everything",
        "`CONFIG SET appendonly yes`, and the same in the store's configuration file",
    )


def _check_memory(settings: Settings, findings: Findings) -> None:
    limit = int(settings.info.get("maxmemory", 0))
    policy = str(settings.info.get("maxmemory_policy", "noeviction"))
    if limit and policy != "noeviction":
        findings.error(
            "evicts",
            f"maxmemory-policy={policy} with maxmemory={limit}: when memory is short the store "
            "drops counts, or the records that keep a repeated report from counting twice",
            "`CONFIG SET maxmemory-policy noeviction`, and the same in the store's configuration",
        )


def _check_place(settings: Settings, findings: Findings) -> None:
    if settings.info.get("role", "master") != "master":
        findings.error(
            "replica",
            f"role={settings.info['role']}: the store is a replica and takes no writes",
            "name the primary with --redis",
        )
    if settings.cluster_state not in (None, "ok"):
        findings.error(
            "cluster_not_ok",
            f"cluster_state={settings.cluster_state}: a part of the slots is served by nobody",
            "see CLUSTER NODES, and bring the missing nodes back",
        )
