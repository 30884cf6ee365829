"""Pretrain a MONAI network with Lightning (`pip install lightning`), with pairs and loss of medcl3d."""

import lightning
import torch
from monai.networks.nets import resnet10
from torch.utils.data import DataLoader

import medcl3d


class Contrastive(lightning.LightningModule):
    """A network, and the relation of a pair strategy as its only supervision."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset
        self.network = resnet10(spatial_dims=3, n_input_channels=dataset.store.num_channels, num_classes=64)
        self.loss = medcl3d.ContrastiveLoss(temperature=0.1)

    def training_step(self, batch, step):
        views = batch.main
        relation = self.dataset.relation(views.keys)
        value = self.loss(self.network(views.voxels), relation.positive, relation.negative)
        self.log("loss", value, batch_size=len(views.voxels), prog_bar=True)
        return value

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(folder="data/example", num_patients=24, steps=200, samples_per_step=16, **trainer):
    store = medcl3d.prepare("simulated", out=folder, num_patients=num_patients, shape=[32, 32, 32])
    dataset = medcl3d.PairDataset(
        store, medcl3d.pairs.OverlappingCrops(min_iou=0.3), "mri", 16, samples_per_step, steps=steps
    )
    loader = DataLoader(dataset, batch_size=None, num_workers=0)  # an item is a whole batch already
    fit = lightning.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **trainer)
    fit.fit(Contrastive(dataset), loader)
    return fit


if __name__ == "__main__":
    main()
