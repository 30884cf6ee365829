"""Pretrain a MONAI network in a plain PyTorch loop, with the pairs and the loss of medcl3d."""

import torch
from monai.networks.nets import resnet10

import medcl3d


def main(folder="data/example", num_patients=24, steps=200, samples_per_step=16):
    store = medcl3d.prepare("simulated", out=folder, num_patients=num_patients, shape=[32, 32, 32])
    strategy = medcl3d.pairs.OverlappingCrops(min_iou=0.3)
    dataset = medcl3d.PairDataset(store, strategy, "mri", 16, samples_per_step, steps=steps)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = resnet10(spatial_dims=3, n_input_channels=store.num_channels, num_classes=64).to(device)
    loss = medcl3d.ContrastiveLoss(temperature=0.1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    history = []
    for batch in dataset.batches(device=device):  # workers=4 reads ahead in other processes
        views = batch.main
        relation = dataset.relation(views.keys)  # or strategy.relate(views.keys, views.keys, None)
        value = loss(network(views.voxels), relation.positive, relation.negative)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(value.item())
    print(f"loss {history[0]:.3f} -> {history[-1]:.3f} in {steps} steps")
    return history


if __name__ == "__main__":
    main()
