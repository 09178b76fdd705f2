"""Operations that public clients know and this version refuses, in their own envelope."""

from typing import get_args

from torpor.api.operations import REGISTRY, Method

_Refused = tuple[Method, str, str]
_PLATFORM: tuple[tuple[str, str, str, tuple[_Refused, ...]], ...] = (
    # group, key of the answer, beginning of the path, and then method, rest of the path, id
    ("Volumes", "volumes", "/v1/volumes", (
        ("POST", "", "create_volume"),
        ("GET", "", "get_volumes"),
        ("PATCH", "", "update_volumes"),
        ("DELETE", "", "delete_volumes"),
        ("GET", "/{uuid:str}", "get_volume_by_uuid"),
        ("PATCH", "/{uuid:str}", "update_volume_by_uuid"),
        ("DELETE", "/{uuid:str}", "delete_volume_by_uuid"),
        ("PUT", "/attach", "attach_volumes"),
        ("PUT", "/{uuid:str}/attach", "attach_volume_by_uuid"),
        ("PUT", "/detach", "detach_volumes"),
        ("PUT", "/{uuid:str}/detach", "detach_volume_by_uuid"),
        ("POST", "/clone", "clone_volumes"),
        ("POST", "/{uuid:str}/clone", "clone_volume_by_uuid"),
        ("POST", "/templates", "create_template_volume"),
        ("GET", "/templates", "get_template_volumes"),
        ("PATCH", "/templates", "update_template_volumes"),
        ("DELETE", "/templates", "delete_template_volumes"),
        ("GET", "/templates/{uuid:str}", "get_template_volume_by_uuid"),
        ("PATCH", "/templates/{uuid:str}", "update_template_volume_by_uuid"),
        ("DELETE", "/templates/{uuid:str}", "delete_template_volume_by_uuid"),
    )),
    ("Certificates", "certificates", "/v1/certificates", (
        ("POST", "", "create_certificate"),
        ("GET", "", "get_certificates"),
        ("PUT", "", "update_certificates"),
        ("PATCH", "", "update_certificates_patch"),
        ("DELETE", "", "delete_certificates"),
        ("GET", "/{uuid:str}", "get_certificate_by_uuid"),
        ("PUT", "/{uuid:str}", "update_certificate_by_uuid"),
        ("DELETE", "/{uuid:str}", "delete_certificate_by_uuid"),
    )),
    ("Autoscale", "service_groups", "/v1/services", (
        ("POST", "/autoscale", "create_autoscale_configurations"),
        ("GET", "/autoscale", "get_autoscale_configurations"),
        ("DELETE", "/autoscale", "delete_autoscale_configurations"),
        ("POST", "/{uuid:str}/autoscale", "create_autoscale_configuration_by_service_group_uuid"),
        ("GET", "/{uuid:str}/autoscale", "get_autoscale_configurations_by_service_group_uuid"),
        ("DELETE", "/{uuid:str}/autoscale",
         "delete_autoscale_configurations_by_service_group_uuid"),
    )),
    ("Autoscale", "policies", "/v1/services", (
        ("POST", "/{uuid:str}/autoscale/policies", "create_autoscale_configuration_policy"),
        ("GET", "/{uuid:str}/autoscale/policies", "get_autoscale_configuration_policies"),
        ("DELETE", "/{uuid:str}/autoscale/policies", "delete_autoscale_configuration_policies"),
        ("GET", "/{uuid:str}/autoscale/policies/{name:str}",
         "get_autoscale_configuration_policy_by_name"),
        ("DELETE", "/{uuid:str}/autoscale/policies/{name:str}",
         "delete_autoscale_configuration_policy_by_name"),
    )),
    ("Images", "images", "/v1/images", (
        ("POST", "", "pin_images"),
        ("DELETE", "", "unpin_images"),
    )),
    ("Control plane", "nodes", "/v1/", (
        ("POST", "nodes", "provision_node"),
        ("PATCH", "nodes", "update_nodes"),
        ("DELETE", "nodes", "destroy_node"),
        ("PATCH", "nodes/{uuid:str}", "update_node_by_uuid"),
        ("DELETE", "nodes/{uuid:str}", "destroy_node_by_uuid"),
        ("POST", "nodes/activate", "node_activate"),
        ("POST", "nodes/deactivate", "node_deactivate"),
    )),
    ("Control plane", "auth", "/v1/", (
        ("POST", "auth/signin", "request_signin"),
    )),
)  # fmt: skip

_STREAMS: tuple[tuple[Method, str, str], ...] = (("POST", "/v1/auth/check", "check_authorization"),)

_BUILDS: tuple[tuple[Method, str, str], ...] = (
    ("POST", "/v1/builds", "create_build"),
    ("GET", "/v1/builds", "list_builds"),
    ("GET", "/v1/builds/{id:str}", "get_build"),
    ("DELETE", "/v1/builds/{id:str}", "delete_build"),
    ("POST", "/v1/builds/{id:str}/cancel", "cancel_build"),
    ("GET", "/v1/builds/{id:str}/logs", "get_build_logs"),
)


_PLUGIN = "/v1/instances/{uuid:str}/plugins/{plugin:str}/{rest:path}"


for _group, _key, _base, _rows in _PLATFORM:
    for _method, _rest, _id in _rows:
        REGISTRY.refuse(_method, _base + _rest, _id, group=_group, key=_key)
for _method, _path, _id in _STREAMS:
    REGISTRY.refuse(_method, _path, _id, group="Control plane", status=400)
for _method, _path, _id in _BUILDS:
    REGISTRY.refuse(_method, _path, _id, group="Builds", status=400, envelope=False)
for _method in get_args(Method):
    REGISTRY.refuse(_method, _PLUGIN, f"plugin_{_method.lower()}", group="Plugins", status=400)
