from datetime import timedelta
def test_all(service):
    service.grant_credits("acme", 100)
    t=service.consume_credits(organization_id="acme", agent_type="VideoAgent", action="generate_video", metadata={"a":1})
    with service.reserve_credits(organization_id="acme", amount=5) as h: pass
    service.refund_credits(t, 3)
    assert service.get_balance("acme").available == 88
    g = service.grant_credits("acme", 10, category="promotional", priority=1)
    h=service.reserve_credits(organization_id="acme", amount=12, idempotency_key="k")
    h2=service.reserve_credits(organization_id="acme", amount=12, idempotency_key="k")
    assert h2.replayed and h2.id==h.id
    service.void_grant(g.id, organization_id="acme")
    service.extend_reservation(h, timedelta(seconds=50))
    service.mark_unknown(h, "fal", "x")
    service.release_reservation(h, "no")
    assert service.verify().ok, service.verify()
    assert service.list_grants("acme")[1].status=="voided"
    assert len(service.list_transactions("acme").items)==6, [ (t.type, t.amount) for t in service.list_transactions("acme").items]
async def test_async(aservice):
    await aservice.grant_credits("acme", 100)
    async with aservice.reserve_credits(organization_id="acme", amount=5) as h:
        assert (await aservice.get_balance("acme")).available==95
    h=await aservice.reserve_credits(organization_id="acme", amount=5)
    await h.commit(3)
    assert (await aservice.get_balance("acme")).available==92
    assert (await aservice.verify()).ok
