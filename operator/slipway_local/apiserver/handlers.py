"""HTTP: paths and parameters to verbs, answers and errors to responses."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson
import yaml
from aiohttp import web

from slipway_local.apiserver import discovery, errors, reviews
from slipway_local.apiserver.codec import MAX_BODY, decode
from slipway_local.apiserver.errors import ApiError
from slipway_local.apiserver.openapi import OPENAPI_V2_PROTOBUF, OPENAPI_V2_TYPE, OpenApi
from slipway_local.apiserver.protobuf import MEDIA_TYPE, decode_protobuf
from slipway_local.apiserver.reading import ListOptions, Reader
from slipway_local.apiserver.registry import Kind, Registry
from slipway_local.apiserver.rendering import JSON, YAML, Output, Renderer, negotiate
from slipway_local.apiserver.resources import Answer, DeleteOptions, Place, Resources, WriteOptions
from slipway_local.apiserver.selectors import Selector, parse_fields, parse_labels
from slipway_local.apiserver.watch import Watcher, WatchOptions

log = logging.getLogger(__name__)

OPEN_PATHS = ("/healthz", "/readyz", "/livez", "/version")
VERSION = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0+slipway",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "python",
    "platform": "local",
}
_FIELD_VALIDATION = ("", "Strict", "Warn", "Ignore")
_TRUE = ("true", "1", "t", "T", "TRUE", "True")
_MAX_MANAGER = 128
_MAX_WARNING = 512


@dataclass(frozen=True)
class Target:
    """What a resource path names. `name` is empty for a collection, `namespace` None for all of them."""

    kind: Kind
    namespace: str | None
    name: str
    subresource: str

    @property
    def place(self) -> Place:
        """The object that the path names."""
        return Place(self.kind, self.namespace or "", self.name, self.subresource)


class Api:
    """One handler for every path."""

    def __init__(
        self,
        token: str,
        registry: Registry,
        resources: Resources,
        reader: Reader,
        renderer: Renderer,
        watcher: Watcher,
    ) -> None:
        self._token = f"Bearer {token}".encode()
        self._registry = registry
        self._resources = resources
        self._reader = reader
        self._renderer = renderer
        self._watcher = watcher
        self._openapi = OpenApi(registry)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            return await self._route(request)
        except ApiError as failure:
            return _status(failure)
        except (RecursionError, UnicodeError, orjson.JSONEncodeError) as failure:
            return _status(errors.bad_request(f"the request cannot be processed: {failure}"))
        except (ConnectionError, web.HTTPException):
            raise
        except Exception as failure:
            log.exception("%s %s failed", request.method, request.path)
            return _status(errors.internal(f"{type(failure).__name__}: {failure}"))

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.split("?", 1)[0]
        if path in OPEN_PATHS:
            return _json(VERSION) if path == "/version" else web.Response(text="ok")
        if not hmac.compare_digest(request.headers.get("Authorization", "").encode(), self._token):
            raise errors.unauthorized()
        segments = [unquote(segment) for segment in path.split("/") if segment]
        if segments[:1] == ["openapi"]:
            return self._serve_openapi(request, segments)
        if segments[:1] == ["api"] and segments[1:2] in ([], ["v1"]):
            return await self._serve_group(request, "", segments[1:])
        if segments[:1] == ["apis"]:
            if len(segments) == 1:
                return self._root(request, legacy=False)
            return await self._serve_group(request, segments[1], segments[2:])
        if not segments:
            return _json({"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]})
        raise errors.no_such_path()

    # --- discovery ---

    def _root(self, request: web.BaseRequest, *, legacy: bool) -> web.Response:
        _only_get(request)
        if discovery.wants_aggregated(request.headers.get("Accept", "")):
            body = orjson.dumps(discovery.aggregated(self._registry, legacy=legacy))
            return web.Response(body=body, headers={"Content-Type": discovery.AGGREGATED, "Vary": "Accept"})
        return _json(discovery.legacy_versions() if legacy else discovery.group_list(self._registry))

    def _serve_openapi(self, request: web.BaseRequest, segments: list[str]) -> web.Response:
        _only_get(request)
        if segments[1:] == ["v3"]:
            return _json(self._openapi.index())
        if segments[1:] == ["v2"] and "protobuf" in request.headers.get("Accept", ""):
            return web.Response(body=OPENAPI_V2_PROTOBUF, headers={"Content-Type": OPENAPI_V2_TYPE})
        document = self._openapi.document("/".join(segments[2:])) if segments[1:2] == ["v3"] else None
        if document is None:
            raise errors.no_such_path()
        return web.Response(body=document, content_type=JSON)

    async def _serve_group(self, request: web.BaseRequest, group: str, rest: list[str]) -> web.StreamResponse:
        if not rest and not group:
            return self._root(request, legacy=True)
        versions = self._registry.groups().get(group, [])
        if not rest:
            if group not in discovery.versions_of(self._registry):
                raise errors.no_such_path()
            return _json(discovery.group(group, discovery.versions_of(self._registry)[group]))
        version, *parts = rest
        if version not in versions:
            raise errors.no_such_path()
        if not parts:
            _only_get(request)
            return _json(discovery.resource_list(self._registry, group, version))
        return await self._serve_resource(request, self._target(group, version, parts))

    def _target(self, group: str, version: str, parts: list[str]) -> Target:
        namespace: str | None = None
        if parts[0] == "namespaces" and len(parts) > 2 and not (group == "" and parts[2] in ("status", "finalize")):
            namespace, parts = parts[1], parts[2:]
        kind = self._registry.get(group, version, parts[0])
        if kind is None or len(parts) > 3 or (namespace is not None and not kind.namespaced):
            raise errors.no_such_path()
        name = parts[1] if len(parts) > 1 else ""
        subresource = parts[2] if len(parts) > 2 else ""
        if subresource and not (subresource == "status" and kind.status):
            raise errors.no_such_path()
        if name and kind.namespaced and namespace is None:
            raise errors.no_such_path()
        return Target(kind, namespace, name, subresource)

    # --- resources ---

    async def _serve_resource(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        method, query = request.method, request.query
        if "get" not in target.kind.verbs:
            return await self._review(request, target)
        if method == "GET":
            if target.name:
                return self._get(request, target)
            return await self._list_or_watch(request, target)
        if method == "POST" and not target.name and (target.namespace is not None or not target.kind.namespaced):
            return await self._create(request, target)
        if method == "DELETE" and not target.subresource:
            if target.name:
                return await self._delete(request, target)
            if target.namespace is not None or not target.kind.namespaced:
                return await self._delete_collection(request, target)
        if method == "PUT" and not target.name and target.kind.custom:
            raise errors.bad_request("name must be provided")
        if method == "POST" and target.namespace is None and target.kind.namespaced and target.kind.custom:
            raise errors.no_such_path()
        if method == "PUT" and target.name:
            obj, duplicates = await self._body(request, query)
            answer = await self._resources.update(target.place, obj, _write_options(request), duplicates)
            return self._answer(request, target.kind, answer)
        if method == "PATCH" and target.name:
            media_type = request.content_type if "Content-Type" in request.headers else ""
            options = _write_options(request, apply=media_type == "application/apply-patch+yaml")
            answer = await self._resources.patch(target.place, media_type, await _read(request), options)
            return self._answer(request, target.kind, answer)
        raise errors.method_not_allowed()

    def _get(self, request: web.BaseRequest, target: Target) -> web.Response:
        output = _output(request)
        version = request.query.get("resourceVersion", "")
        body = self._reader.get(target.kind, target.namespace or "", target.name, version, output)
        return _encoded(body, output)

    async def _list_or_watch(self, request: web.BaseRequest, target: Target) -> web.StreamResponse:
        query, output = request.query, _output(request)
        selector = _selector(target.kind, query)
        version, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
        if query.get("watch") in _TRUE:
            timeout = _number(query, "timeoutSeconds")
            initial = query.get("sendInitialEvents")
            options = WatchOptions(
                selector=selector,
                resource_version=version,
                timeout=float(timeout) if timeout else None,
                bookmarks=query.get("allowWatchBookmarks") in _TRUE,
                initial_events=None if initial is None else initial in _TRUE,
            )
            self._watcher.check(options, match)
            return await self._watch(request, target, options, output)
        if "sendInitialEvents" in query:
            wrong = errors.forbidden_field("sendInitialEvents", "sendInitialEvents is forbidden for list")
            raise errors.unprocessable("ListOptions", "meta.k8s.io", "", [wrong])
        listing = ListOptions(selector, _number(query, "limit"), query.get("continue", ""), version, match)
        return _encoded(self._reader.listing(target.kind, target.namespace, listing, output), output)

    async def _watch(
        self, request: web.BaseRequest, target: Target, options: WatchOptions, output: Output
    ) -> web.StreamResponse:
        headers = {"Content-Type": JSON, "Cache-Control": "no-cache, private"}
        response = web.StreamResponse(headers=headers)
        response.enable_chunked_encoding()
        await response.prepare(request)
        await self._watcher.stream(target.kind, target.namespace, options, output, response.write)
        await response.write_eof()
        return response

    async def _create(self, request: web.BaseRequest, target: Target) -> web.Response:
        obj, duplicates = await self._body(request, request.query)
        options = _write_options(request)
        answer = await self._resources.create(target.kind, target.namespace or "", obj, options, duplicates)
        return self._answer(request, target.kind, answer)

    async def _delete(self, request: web.BaseRequest, target: Target) -> web.Response:
        options = _delete_options(request.query, await self._optional_body(request))
        return self._answer(request, target.kind, await self._resources.delete(target.place, options))

    async def _delete_collection(self, request: web.BaseRequest, target: Target) -> web.Response:
        options = _delete_options(request.query, await self._optional_body(request))
        kind = target.kind
        selector = _selector(kind, request.query)
        deleted = []
        for item in self._resources.store.items(kind.resource, target.namespace):
            if kind.matches(item, selector):
                try:
                    await self._resources.delete(Place(kind, item.namespace, item.name), options)
                except ApiError as failure:
                    if failure.code != 404:
                        raise
                deleted.append(item)
        metadata = {"resourceVersion": str(self._resources.store.version)}
        output = _output(request)
        return _encoded(self._renderer.many(kind, deleted, metadata, output), output)

    async def _review(self, request: web.BaseRequest, target: Target) -> web.Response:
        if request.method != "POST" or target.name:
            raise errors.method_not_allowed()
        obj, _ = await self._body(request, request.query)
        return _json(reviews.answer(target.kind, obj), 201)

    async def _body(self, request: web.BaseRequest, query: Mapping[str, str]) -> tuple[Any, list[str]]:
        media_type = request.content_type if "Content-Type" in request.headers else JSON
        if media_type == MEDIA_TYPE:
            return decode_protobuf(await _read(request)), []
        if media_type not in (JSON, YAML):
            raise errors.unsupported_media_type(media_type, [JSON, YAML])
        body = await _read(request)
        lenient = query.get("fieldValidation") == "Ignore"
        return decode(body, is_yaml=media_type != JSON, find_duplicates=not lenient)

    async def _optional_body(self, request: web.BaseRequest) -> dict[str, Any]:
        body = await _read(request)
        if not body.strip():
            return {}
        value = decode_protobuf(body) if request.content_type == MEDIA_TYPE else decode(body, is_yaml=True)[0]
        if not isinstance(value, dict):
            raise errors.bad_request("the body must be DeleteOptions")
        return value

    def _answer(self, request: web.BaseRequest, kind: Kind, answer: Answer) -> web.Response:
        output = _output(request)
        obj = answer.obj
        if obj is not None and obj.get("kind") == "Status":
            body = orjson.dumps(obj)
        elif output.shape == "object":
            body = answer.raw if obj is None else orjson.dumps(obj)
        else:
            body = self._renderer.loaded(kind, orjson.loads(answer.raw) if obj is None else obj, output)
        response = _encoded(body, output, answer.code)
        for warning in answer.warnings[:20]:
            response.headers.add("Warning", f"299 - {orjson.dumps(warning[:_MAX_WARNING]).decode()}")
        return response


# --- requests -----------------------------------------------------------------------------------------------------


def _only_get(request: web.BaseRequest) -> None:
    if request.method != "GET":
        raise errors.method_not_allowed()


async def _read(request: web.BaseRequest) -> bytes:
    """The body, up to the limit. Raises ApiError 413."""
    message = f"limit is {MAX_BODY}"
    if request.content_length is not None and request.content_length > MAX_BODY:
        raise errors.too_large(message)
    chunks, size = [], 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > MAX_BODY:
            raise errors.too_large(message)
        chunks.append(chunk)
    return b"".join(chunks)


def _output(request: web.BaseRequest) -> Output:
    return negotiate(request.headers.get("Accept", ""), request.query.get("includeObject", ""))


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name) or "0"
    if text.startswith("-") and text[1:].isdecimal():
        return 0  # kube-apiserver takes a negative limit for none
    if not text.isdecimal() or len(text) > 18:
        raise errors.bad_request(f'invalid value for {name}: strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def _selector(kind: Kind, query: Mapping[str, str]) -> Selector:
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
    if not labels and not fields:
        return Selector()
    terms = parse_fields(fields, kind.selects) if fields else ()
    return Selector(parse_labels(labels) if labels else (), terms)


def _invalid_option(options: str, field: str, type_: str, detail: str, value: Any = errors.OMITTED) -> ApiError:
    wrong = errors.FieldError(type_, field, value, detail)
    return errors.unprocessable(options, "meta.k8s.io", "", [wrong])


def _dry_run(values: list[str], options: str) -> bool:
    if any(value != "All" for value in values):
        raise _invalid_option(options, "dryRun", "Unsupported value", 'supported values: "All"', values)
    return bool(values)


def _write_options(request: web.BaseRequest, *, apply: bool = False) -> WriteOptions:
    query = request.query
    what = {"POST": "CreateOptions", "PUT": "UpdateOptions"}.get(request.method, "PatchOptions")
    validation = query.get("fieldValidation", "")
    if validation not in _FIELD_VALIDATION:
        allowed = 'supported values: "Ignore", "Warn", "Strict"'
        raise _invalid_option(what, "fieldValidation", "Unsupported value", allowed, validation)
    manager = query.get("fieldManager", "")
    if len(manager) > _MAX_MANAGER or not manager.isprintable():
        detail = f"may not be more than {_MAX_MANAGER} printable characters"
        raise _invalid_option(what, "fieldManager", "Invalid value", detail, manager)
    if apply and not manager:
        raise _invalid_option(what, "fieldManager", "Required value", "is required for apply patch")
    if "force" in query and not apply and request.method == "PATCH":
        raise _invalid_option(what, "force", "Forbidden", "may not be specified for non-apply patch")
    agent = request.headers.get("User-Agent", "").split("/", 1)[0][:_MAX_MANAGER]
    return WriteOptions(
        manager=manager or agent or "unknown",
        dry_run=_dry_run(query.getall("dryRun", []), what),
        validation=validation or "Warn",
        force=query.get("force") in _TRUE,
    )


def _delete_options(query: Any, body: dict[str, Any]) -> DeleteOptions:
    what = "DeleteOptions"
    policy = body.get("propagationPolicy") or query.get("propagationPolicy")
    orphan = body.get("orphanDependents", query.get("orphanDependents") in _TRUE)
    if policy and policy not in ("Background", "Foreground", "Orphan"):
        allowed = 'supported values: "Foreground", "Background", "Orphan", "nil"'
        raise _invalid_option(what, "propagationPolicy", "Invalid value", allowed, policy)
    preconditions = body.get("preconditions") or {}
    dry_run = body.get("dryRun") or query.getall("dryRun", [])
    if not isinstance(preconditions, dict) or not isinstance(dry_run, list):
        raise errors.bad_request("json: cannot unmarshal into Go value of type v1.DeleteOptions")
    return DeleteOptions(
        policy=policy or ("Orphan" if orphan is True else "Background"),
        uid=preconditions.get("uid"),
        resource_version=preconditions.get("resourceVersion"),
        dry_run=_dry_run(dry_run, what),
    )


# --- responses ----------------------------------------------------------------------------------------------------


def _json(value: Any, code: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=code, content_type=JSON)


def _encoded(body: bytes, output: Output, code: int = 200) -> web.Response:
    if output.yaml:
        body = yaml.safe_dump(orjson.loads(body), sort_keys=False).encode()
    headers = {"Content-Type": output.content_type, "Cache-Control": "no-cache, private"}
    return web.Response(body=body, status=code, headers=headers)


def _status(failure: ApiError) -> web.Response:
    response = _json(failure.status(), failure.code)
    if failure.code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    retry = (failure.details or {}).get("retryAfterSeconds")
    if retry:
        response.headers["Retry-After"] = str(retry)
    return response
