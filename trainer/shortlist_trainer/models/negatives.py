"""Negative examples for implicit feedback: items that a user has not touched, each as likely as the other."""

import torch
from torch import Tensor

from shortlist_trainer.data.dataset import Interactions


class NegativeSampler:
    """Draws untouched items for the users of interactions, without rejections.

    A user who touched the items j_0 < j_1 < … has j_k - k untouched items below j_k. So the r-th untouched item, from
    0, is r + c, c being how many k have j_k - k <= r. One sorted table of user * items + j_k - k answers that for all
    users by binary search, on any device.

    Args:
        interactions: what users touched.
        device: where negatives are wanted.
    """

    def __init__(self, interactions: Interactions, device: torch.device) -> None:
        offsets = torch.from_numpy(interactions.user_offsets()).to(device)  # (users + 1,)
        users = torch.from_numpy(interactions.users).to(device).long()  # (n,) ascending
        items = torch.from_numpy(interactions.items).to(device).long()  # (n,) ascending within a user
        self._item_count = interactions.item_count
        self._offsets = offsets
        place = torch.arange(len(users), device=device) - offsets[users]  # (n,) k
        self._keys = users * self._item_count + items - place  # (n,)
        self.untouched_counts = self._item_count - offsets.diff()  # (users,)

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """One negative for each of some users.

        Args:
            users: (n,) int64 user rows, each with an untouched item; quickest in ascending order.
            generator: on the CPU.

        Returns:
            (n,) int64 item rows, the j-th untouched by the j-th user and drawn independently of all others.
        """
        # Of 2^62 numbers the remainders of fewer than 2^31 are equally likely to within one in 2^31.
        numbers = torch.randint(1 << 62, (len(users),), generator=generator).to(users.device)
        among_untouched = numbers % self.untouched_counts[users]
        found = torch.searchsorted(self._keys, users * self._item_count + among_untouched, right=True)
        return among_untouched + found - self._offsets[users]
