"""The mechanisms that keep the promises, and for each a small change that breaks it. See :mod:`.mutations`."""

from __future__ import annotations

from dataclasses import dataclass

PACKAGE = "airflow_provider_openai_batches"


@dataclass(frozen=True)
class Breakage:
    """One mechanism, broken.

    :param name: the mechanism
    :param how: what is done to it
    :param file: in the package
    :param old: the text that is replaced; it has to be there exactly once
    :param new: what comes in its place
    :param tests: pytest's arguments: the rooms in which it should be noticed
    """

    name: str
    how: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


BUYING = (
    "tests/jobs/test_purchase.py",
    "tests/jobs/test_ownership.py",
    "tests/jobs/test_engine.py",
    "tests/jobs/test_crashes.py",
)

BREAKAGES = (
    # --- nothing is bought twice, nothing paid for is lost -----------------------------------------------------------
    Breakage(
        "intent before POST /batches",
        "the ledger is not saved before the create is sent",
        "jobs/purchase.py",
        "current.creates, current.intent_at = create, claim.at\n            job.save()\n",
        "current.creates, current.intent_at = create, claim.at\n",
        BUYING,
    ),
    Breakage(
        "claim before POST /batches",
        "whoever wants to create may",
        "jobs/purchase.py",
        "if send and job.directory.claim(name, msgspec.json.encode(claim)):",
        "if send and (job.directory.claim(name, msgspec.json.encode(claim)) or True):",
        BUYING,
    ),
    Breakage(
        "lease of a claim",
        "a process that was frozen sends all the same",
        "jobs/purchase.py",
        "if job.monotonic() - claimed_at < CLAIM_LEASE_S:",
        "if True:",
        BUYING,
    ),
    Breakage(
        "list scan after an ambiguous create (jobs)",
        "nothing is looked for, a new create is sent",
        "jobs/purchase.py",
        "found = _search(job, shard, earlier.at)",
        "found = None",
        BUYING,
    ),
    Breakage(
        "list scan after an ambiguous create (client)",
        "nothing is looked for before the create is repeated",
        "api/create.py",
        "if found := self._after_lost_answer(purchase, pauses):",
        "if found := None:",
        ("tests/api/test_create.py",),
    ),
    Breakage(
        "a lost create without metadata (client)",
        "what a batch was made for is looked for in its metadata alone",
        "api/create.py",
        "if token == purchase.token or (not self.keeps_metadata and token is None and purchase.is_for(batch)):",
        "if token == purchase.token:",
        ("tests/dialects/test_walk.py::test_a_lost_create_answer_buys_one_batch_for_the_hook",),
    ),
    Breakage(
        "a lost create without metadata (jobs)",
        "a round's batch is looked for by its metadata alone",
        "jobs/purchase.py",
        "if (_matches(batch, wanted) or _is_for_file(job, batch, files)) and batch.id not in job.ledger.twins",
        "if _matches(batch, wanted) and batch.id not in job.ledger.twins",
        ("tests/dialects/test_walk.py::test_a_lost_create_answer_and_a_list_that_fails_buy_one_batch_for_a_job",),
    ),
    Breakage(
        "POST /batches is never repeated blindly",
        "a lost answer counts as if nothing had been sent",
        "api/create.py",
        "                if error.maybe_applied:\n                    lost = error\n",
        "",
        ("tests/api/test_create.py",),
    ),
    Breakage(
        "patience after a claim",
        "a second create follows at once when the first is not listed",
        "jobs/purchase.py",
        "if job.now() < settled_at:",
        "if False:",
        BUYING,
    ),
    Breakage(
        "one owner",
        "an attempt that has lost the job goes on writing",
        "jobs/ownership.py",
        "    newest = _newest(directory)\n    if newest <= ledger.number:\n        return\n",
        "    newest = _newest(directory)\n    return\n",
        BUYING,
    ),
    Breakage(
        "one owner (rows without a batch)",
        "an attempt that has lost the job goes on sending",
        "jobs/sending.py",
        "            check_owns(job.directory, job.ledger)\n        except LedgerError:",
        "            pass\n        except LedgerError:",
        ("tests/jobs/test_crashes.py", "-k", "while_it_sends_the_last_rows"),
    ),
    Breakage(
        "patience after a claim of a row",
        "a row whose answer may still come is sent again at once",
        "jobs/direct.py",
        "left = [row for row in rows if not row.answered and row.settled_at <= now]",
        "left = [row for row in rows if not row.answered]",
        ("tests/jobs/test_direct.py", "-k", "still_under_way"),
    ),
    Breakage(
        "no row is sent twice that has an answer",
        "what an earlier attempt has got is not looked at",
        "jobs/sending.py",
        "                row.answered = True",
        "                row.answered = False",
        ("tests/jobs/test_direct.py", "-k", "being_ended"),
    ),
    Breakage(
        "a service that cannot be asked burns no attempt",
        "each refusal is the row's",
        "jobs/sending.py",
        "return Meaning.ROW_FAILED if is_of_the_row else Meaning.USE_A_BATCH",
        "return Meaning.ROW_FAILED",
        ("tests/jobs/test_direct.py", "-k", "cannot_answer"),
    ),
    Breakage(
        "files appear whole or not at all (ledger)",
        "written in place",
        "jobs/directory.py",
        "self._draft(name, content).replace(self.root / _checked(name))",
        "(self.root / name).parent.mkdir(parents=True, exist_ok=True); (self.root / name).write_bytes(content)",
        ("tests/jobs/test_directory.py", "tests/jobs/test_crashes.py"),
    ),
    Breakage(
        "files appear whole or not at all (answers)",
        "what has come gets its name, even if it is not all",
        "api/download.py",
        "    finally:\n        part.unlink(missing_ok=True)\n    return size\n",
        "    finally:\n        if part.exists():\n            part.replace(destination)\n    return size\n",
        ("tests/api/test_download.py",),
    ),
    Breakage(
        "the source is read once",
        "a retry plans again",
        "jobs/opening.py",
        "    # A user who clears it has changed what was refused: a model's name, say.\n",
        "    ledger.planned = False\n",
        ("tests/jobs/test_engine.py", "tests/jobs/test_replan.py", "tests/jobs/test_crashes.py"),
    ),
    Breakage(
        "a clear keeps answers to unchanged rows",
        "no earlier answer is found",
        "jobs/reuse.py",
        "if (row := self._earlier.find(request)) is not None:",
        "if (row := None) is not None:",
        ("tests/jobs/test_replan.py",),
    ),
    Breakage(
        "duplicates are bought once",
        "no row is noted as the first that asks something",
        "jobs/reuse.py",
        "first = self._firsts.note(content, request.index)",
        "first = None",
        ("tests/jobs/test_duplicates.py",),
    ),
    Breakage(
        "what the run before has answered is not bought for another row",
        "only its own custom_id finds an answer",
        "jobs/reuse.py",
        "(row := self._earlier.find_same(request, content)) is not None:",
        "(row := None) is not None:",
        ("tests/jobs/test_duplicates.py",),
    ),
    Breakage(
        "what the answer cache knows is not bought",
        "what is looked for is not found",
        "jobs/reuse.py",
        "(answer := self._cache.find(content)) is not None:",
        "(answer := None) is not None:",
        ("tests/jobs/test_answer_cache.py",),
    ),
    Breakage(
        "a damaged answer in the cache is none",
        "the digest of a line is not looked at",
        "jobs/segments.py",
        "return answer if _digest(raw[: match.end(3)], answer) == match[4] else None",
        "return answer",
        ("tests/jobs/test_answer_cache.py", "-k", "damage or bytes"),
    ),
    Breakage(
        "answers in the cache expire",
        "how old an answer is does not matter",
        "jobs/answer_cache.py",
        "elif head.until >= self._now and head.at >= self._oldest:",
        "else:",
        ("tests/jobs/test_answer_cache.py", "-k", "expires or old"),
    ),
    Breakage(
        "the answer cache knows services apart",
        "the service's address is no part of the key",
        "jobs/answer_cache.py",
        'settings.base_url.rstrip("/").encode() + b"\\n", ',
        "",
        ("tests/jobs/test_answer_cache.py", "-k", "service"),
    ),
    Breakage(
        "answers are fetched before a job is planned anew",
        "a shard whose answers could not be had counts as over",
        "jobs/engine.py",
        "if ledger.replanning and not is_owed:",
        "if ledger.replanning:",
        ("tests/jobs/test_replan.py", "-k", "while_answers_are_refused"),
    ),
    Breakage(
        "a triggerer that stops cancels nothing",
        "on_kill cancels, whatever the task's state",
        "triggers/openai_batches.py",
        "if await task_state(self) in ENDED_TASK_STATES:",
        "if await task_state(self) or True:",
        ("tests/polling/test_trigger.py", "-k", "goes_on_or_was_cleared or unless_asked"),
    ),
    Breakage(
        "answers are checked against the batch's counts",
        "a file with too few lines is taken for whole",
        "jobs/landing.py",
        "if problem := check_counts(batch, *lines, current.requests):",
        "if problem := None:",
        ("tests/jobs/test_engine.py",),
    ),
    Breakage(
        "answers are waited for where nothing is counted (files)",
        "a completed batch that names no file has answered nothing",
        "api/models.py",
        "            or (counts.total == 0 and names_none)\n",
        "",
        ("tests/jobs/test_engine.py", "-k", "sends_no_counts"),
    ),
    Breakage(
        "answers are waited for where nothing is counted (lines)",
        "the files that a completed batch names are taken for all",
        "jobs/results.py",
        "if not counts.total and batch.status == BatchStatus.COMPLETED and output_lines + error_lines < requests:",
        "if False:",
        ("tests/jobs/test_engine.py", "-k", "sends_no_counts"),
    ),
    Breakage(
        "the length of a download is checked",
        "what has come by the end of the connection is taken for whole",
        "api/download.py",
        "            except requests.RequestException as error:\n"
        "                raise self._incomplete(expected) from error\n"
        "        if expected is not None and self.sink.tell() != expected:\n",
        "            except requests.RequestException:\n                pass\n        if False:\n",
        ("tests/api/test_download.py",),
    ),
    # --- every row is accounted for ----------------------------------------------------------------------------------
    Breakage(
        "results in input order (models)",
        "the rows of one model follow those of another",
        "jobs/parts.py",
        'heapq.merge(*chains, key=attrgetter("index"))',
        "chain(*chains)",
        ("tests/jobs/test_parts.py", "tests/jobs/test_engine.py"),
    ),
    Breakage(
        "results in input order (answers)",
        "rows come as the output file has them",
        "jobs/rounds.py",
        'position = self._positions.get(line.key or "")',
        "position = number - 1 if line.key in self._positions else None",
        ("tests/jobs/test_results.py", "-k", "input_order"),
    ),
    Breakage(
        "the first answer counts",
        "the last one does",
        "jobs/rounds.py",
        "if line.is_success and not succeeded[position]:",
        "if line.is_success:",
        ("tests/jobs/test_results.py",),
    ),
    Breakage(
        "an attempt is a run",
        "rows that never ran use up their attempts",
        "jobs/results.py",
        "            if ran(line):\n                self._attempts[position] += 1\n",
        "            if True:\n                self._attempts[position] += 1\n",
        ("tests/jobs/test_results.py",),
    ),
    Breakage(
        "a finished job leaves no file",
        "nobody looks for the file of an upload whose answer was lost",
        "jobs/copies.py",
        "    if ledger.unsure_since is None:\n        return []\n",
        "    if True:\n        return []\n",
        ("tests/jobs/test_copies.py",),
    ),
    # --- memory and event loop stay flat -----------------------------------------------------------------------------
    Breakage(
        "memory: answers are read line by line",
        "the whole file is read",
        "jobs/rounds.py",
        "        for raw in file:\n            yield offset, raw\n",
        '        for raw in __import__("io").BytesIO(file.read()):\n            yield offset, raw\n',
        ("tests/jobs/test_results.py", "tests/jobs/test_replan.py"),
    ),
    Breakage(
        "memory: rows are read one by one",
        "all rows are read before the first is written",
        "jobs/shards.py",
        "        for request in requests:\n",
        "        for request in list(requests):\n",
        ("tests/jobs/test_shards.py", "-k", "memory or still_read"),
    ),
    Breakage(
        "memory: uploads are streamed",
        "the whole file is read",
        "api/upload.py",
        '("file", (filename, _Content(content), "application/jsonl")),',
        '("file", (filename, content.read(), "application/jsonl")),',
        ("tests/api/test_upload.py",),
    ),
    Breakage(
        "one batch's trouble is its own",
        "a poll ends at the first batch that has one",
        "sighting.py",
        "                self.sighting.errors[batch_id] = error\n",
        "                self.sighting.errors[batch_id] = self.sighting.outage = error\n",
        ("tests/polling/test_sighting.py", "tests/polling/test_poller.py"),
    ),
    Breakage(
        "looks stay off the loop's default executor",
        "they take a thread of it, as any other's to_thread",
        "polling.py",
        "run_in_executor(self._thread, counted_look",
        "run_in_executor(None, counted_look",
        ("tests/polling/test_poller.py", "-k", "default_executor or a_completion_is_noticed"),
    ),
    # --- it is Airflow -----------------------------------------------------------------------------------------------
    Breakage(
        "no worker is held while a job waits",
        "the task waits in its worker, whatever it was told",
        "operators/job.py",
        "        if self.deferrable:\n            self._defer(waiting)\n",
        "        if False:\n            self._defer(waiting)\n",
        ("tests/airflow/test_job.py", "-k", "without_worker or ids_and_link"),
    ),
    Breakage(
        "ids are in Airflow as soon as they are known",
        "they come with the result",
        "operators/job.py",
        '            context["ti"].xcom_push(key="batch_ids", value=batch_ids)\n',
        "",
        ("tests/airflow/test_job.py", "-k", "ids_and_link"),
    ),
    Breakage(
        "ids and paths are templates",
        "the output path is taken as it is written",
        "operators/job.py",
        '("requests", "output_path", "model",',
        '("requests", "model",',
        ("tests/airflow/test_dags.py", "tests/airflow/test_decorator.py", "tests/airflow/test_job.py"),
    ),
    # --- who may do what, and who learns what ------------------------------------------------------------------------
    Breakage(
        "webhooks are signed",
        "any signature is good",
        "api/webhooks.py",
        "if not any(hmac.compare_digest(expected, each) for each in given):",
        "if not given:",
        ("tests/api/test_webhooks.py", "tests/plugin/test_webhooks.py"),
    ),
    Breakage(
        "who may cancel",
        "whoever sees a batch may",
        "plugin/access.py",
        "if not scope.may_act(batch):",
        "if False:",
        ("tests/plugin/test_authorization.py",),
    ),
    Breakage(
        "another site's page cannot cancel",
        "where a call comes from is not looked at",
        "plugin/access.py",
        'if site not in (None, "same-origin", "none"):',
        "if False:",
        ("tests/plugin/test_authorization.py",),
    ),
    Breakage(
        "no secret in the trigger's arguments",
        "the key is one of them",
        "triggers/openai_batches.py",
        '                "conn_id": self.conn_id,\n                "batch_ids"',
        '                "api_key": __import__("airflow.sdk").sdk.BaseHook.get_connection(self.conn_id).password,\n'
        '                "conn_id": self.conn_id,\n                "batch_ids"',
        ("tests/airflow/test_secrets.py", "-k", "arguments_of_triggers"),
    ),
    # --- errors say what happened ------------------------------------------------------------------------------------
    Breakage(
        "bad input is refused before money is spent",
        "a row without content is sent",
        "jobs/requests.py",
        '        if fault := body_fault(self._endpoint, stream=body.get("stream"), has_content=has_content):\n'
        "            raise RowError(fault)\n",
        "",
        ("tests/jobs/test_requests.py",),
    ),
    Breakage(
        "custom_ids are unique",
        "repetitions far apart are not looked for",
        "jobs/requests.py",
        "        ids.check(index)\n",
        "",
        ("tests/jobs/test_unique_ids.py", "tests/jobs/test_requests.py"),
    ),
)
