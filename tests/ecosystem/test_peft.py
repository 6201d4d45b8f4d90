"""LoRA on the factors."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lillama import load_checkpoint

peft = pytest.importorskip("peft", reason="peft is not installed")
FACTORS = r".*\.(A|B)$"


@pytest.mark.parametrize("targets", [FACTORS, "all-linear"])
def test_lora_trains_merges_and_reloads(saved, tmp_path, targets):
    model = AutoModelForCausalLM.from_pretrained(saved.folder)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    optimizer = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = tuned(saved.ids, labels=saved.ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    tuned.eval()
    with torch.no_grad():
        logits = tuned(saved.ids).logits
        assert not torch.allclose(logits, saved.logits, atol=1e-2)
        tuned.save_pretrained(tmp_path / "adapter")
        fresh = AutoModelForCausalLM.from_pretrained(saved.folder)
        attached = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        torch.testing.assert_close(attached(saved.ids).logits, logits, atol=1e-5, rtol=1e-5)
        merged = tuned.merge_and_unload()
        torch.testing.assert_close(merged(saved.ids).logits, logits, atol=1e-4, rtol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        torch.testing.assert_close(load_checkpoint(tmp_path / "merged")(saved.ids).logits, logits, atol=1e-4, rtol=1e-4)


def test_lora_on_the_pair_itself_is_refused(saved):
    """It would be merged into the product that nobody stores."""
    model = AutoModelForCausalLM.from_pretrained(saved.folder)
    with pytest.raises(ValueError, match=type(model.model.layers[0].self_attn.q_proj).__name__):
        peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
