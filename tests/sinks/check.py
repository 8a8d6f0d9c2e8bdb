"""Looks at what sinks sent, with what others wrote: reads it as JSON from stdin, says what it has checked."""

import json
import sys
from pathlib import Path

import jsonschema
from slack_sdk.models.blocks import Block
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

sent = json.load(sys.stdin)
checked = {"schemas": 0, "webhooks": 0, "slack": 0}

for name, payloads in sent["payloads"].items():
    schema = json.loads((Path(sys.argv[1]) / f"{name}.json").read_text())
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    jsonschema.Draft202012Validator.check_schema(schema)
    for payload in payloads:
        validator.validate(payload)
        checked["schemas"] += 1

for webhook in sent["webhooks"]:
    for secret in webhook["secrets"]:
        Webhook(secret).verify(webhook["body"], webhook["headers"])
        for body, headers in (
            (webhook["body"] + " ", webhook["headers"]),
            (webhook["body"], {**webhook["headers"], "webhook-id": "msg_other"}),
        ):
            try:
                Webhook(secret).verify(body, headers)
            except WebhookVerificationError:
                continue
            sys.exit("what was changed passes as signed")
        checked["webhooks"] += 1

for message in sent["payloads"]["slack"]:
    for block in message["blocks"]:
        parsed = Block.parse(block)
        if type(parsed).__name__ not in ("HeaderBlock", "SectionBlock", "ContextBlock"):
            sys.exit(f"Slack does not know {block}")
        parsed.validate_json()
        checked["slack"] += 1

print(json.dumps(checked))
