"""The nearest training images of samples, against float64 NumPy and scikit-learn, and with copies
that were planted."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from diffusion_jax.core.errors import UserError
from diffusion_jax.data.sources import Arrays, digits
from diffusion_jax.evaluation import memorisation
from diffusion_jax.modalities import pictures

DIGITS, HELD_OUT = digits("train"), digits("test")


def noise(seed, count, shape=(5, 6, 3)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def unlabelled(images):
    return Arrays(images, None)


def rms(a, b):
    return np.sqrt(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))


def loop(samples, images, flip):
    """[N, M] by definition, one pair at a time."""
    one = lambda a, b: min(rms(a, b), rms(a, b[:, ::-1])) if flip else rms(a, b)
    return np.array([[one(a, b) for b in images] for a in samples])


def test_the_neighbours_of_held_out_digits_are_scikit_learns():
    flat = lambda images: images.reshape(len(images), -1).astype(np.float64)
    _, first = np.unique(flat(DIGITS.images), axis=0, return_index=True)
    assert len(first) == len(DIGITS)  # no digit is there twice
    distance, index = (
        NearestNeighbors(n_neighbors=3, algorithm="brute")
        .fit(flat(DIGITS.images))
        .kneighbors(flat(HELD_OUT.images))
    )
    found = memorisation.nearest(HELD_OUT.images, DIGITS)
    np.testing.assert_allclose(found.distance, distance / 8, rtol=1e-9)
    ties = (np.diff(distance, axis=1) == 0).any(axis=1)
    np.testing.assert_array_equal(found.index[~ties], index[~ties])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "shape", [(5, 6, 3), (40, 40, 1)]
)  # the second has more pixels than float32 sums up exactly
def test_neighbours_by_definition(flip, shape):
    samples, images = noise(0, 7, shape), noise(1, 20, shape)
    samples[0] = 255  # as far as can be
    images[4] = 0
    found, apart = (
        memorisation.nearest(samples, unlabelled(images), flip=flip),
        loop(samples, images, flip),
    )
    np.testing.assert_array_equal(found.index, np.argsort(apart, axis=1, kind="stable")[:, :3])
    np.testing.assert_allclose(found.distance, np.sort(apart, axis=1)[:, :3], rtol=1e-14)
    for n, i, mirrored in zip(
        np.repeat(np.arange(7), 3), found.index.ravel(), found.mirrored.ravel(), strict=True
    ):
        straight, mirror = rms(samples[n], images[i]), rms(samples[n], images[i][:, ::-1])
        assert mirrored == (flip and mirror < straight)


def test_distances_are_exact_where_float32_alone_would_not_be():
    """Bright images of 49,152 values that differ in a single one by 1."""
    images = np.full((3, 128, 128, 3), 255, np.uint8)
    images[1, 7, 9, 1], images[2] = 254, 0
    found = memorisation.nearest(images[:1], unlabelled(images))
    np.testing.assert_array_equal(found.index, [[0, 1, 2]])
    np.testing.assert_allclose(
        found.distance, [[0.0, np.sqrt(1 / 49_152), 255.0]], rtol=1e-15, atol=0
    )


def test_planted_copies_and_near_copies_are_found():
    images, samples = noise(0, 50), noise(1, 30)
    samples[3], samples[8] = images[17], images[41]
    samples[11] = np.clip(
        images[29].astype(int) + np.random.default_rng(2).integers(-3, 4, (5, 6, 3)), 0, 255
    )
    samples[20] = images[33][:, ::-1]
    found = memorisation.nearest(samples, unlabelled(images))
    assert (found.index[3, 0], found.distance[3, 0], found.ratio[3]) == (17, 0.0, 0.0)
    assert (found.index[8, 0], found.distance[8, 0]) == (41, 0.0)
    assert found.index[11, 0] == 29
    assert 0 < found.distance[11, 0] <= 3
    result = memorisation.memorisation(samples, noise(3, 40), unlabelled(images))
    assert (result.samples.count, result.samples.exact, result.samples.share) == (30, 2, 3 / 30)
    assert (result.held_out.count, result.held_out.exact, result.held_out.share) == (40, 0, 0.0)
    np.testing.assert_array_equal(result.neighbours.index, found.index)
    assert result.held_out.median == np.median(loop(noise(3, 40), images, False).min(axis=1))

    mirrored = memorisation.memorisation(samples, noise(3, 40), unlabelled(images), flip=True)
    assert (mirrored.samples.exact, mirrored.samples.share) == (3, 4 / 30)
    assert (mirrored.neighbours.index[20, 0], mirrored.neighbours.mirrored[20, 0]) == (33, True)
    assert not mirrored.neighbours.mirrored[[3, 8, 11], 0].any()


def test_held_out_digits_are_hardly_ever_memorised():
    result = memorisation.memorisation(DIGITS.images[:20], HELD_OUT.images, DIGITS)
    assert result.held_out.share <= 1 / len(HELD_OUT)
    assert result.held_out.exact == 0
    assert (result.samples.exact, result.samples.share, result.samples.median) == (20, 1.0, 0.0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("block", [1, 2, 7, 1000])
def test_the_block_size_does_not_matter(block, flip):
    """Also with equal distances, of which the first counts, and with the same image in several
    blocks."""
    images = noise(0, 40, (2, 2, 1)) // 64 * 64  # 256 different ones
    images[[5, 21, 39]] = images[12]
    images[30] = images[2][:, ::-1]
    samples = np.concatenate([noise(1, 15, (2, 2, 1)) // 64 * 64, images[[12, 2]]])
    expected = memorisation.nearest(samples, unlabelled(images), flip=flip)
    found = memorisation.nearest(samples, unlabelled(images), flip=flip, block=block)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("block", [4, 1024])
def test_an_image_that_is_there_often_does_not_hide_its_copy(block):
    images = noise(0, 12)
    images[[3, 6, 7, 11]] = images[1]
    found = memorisation.nearest(images[1:2], unlabelled(images), block=block)
    others = np.array([0, 2, 4, 5, 8, 9, 10])
    apart = loop(images[1:2], images[others], False)[0]
    np.testing.assert_array_equal(found.index, [[1, *others[np.argsort(apart)[:2]]]])
    assert found.ratio[0] == 0.0
    near = images[1:2] ^ 1
    assert (
        memorisation.copies(memorisation.nearest(near, unlabelled(images), block=block)).share
        == 1.0
    )


@pytest.mark.parametrize("block", [1, 1024])
def test_an_image_and_its_mirror_image_are_one_where_mirrored_ones_count(block):
    images = noise(0, 6)
    images[4] = images[1][:, ::-1]
    found = memorisation.nearest(images[4:5], unlabelled(images), flip=True, block=block)
    assert (found.index[0, 0], found.mirrored[0, 0], found.ratio[0]) == (1, True, 0.0)
    assert 4 not in found.index
    assert memorisation.nearest(images[4:5], unlabelled(images), block=block).index[0, 0] == 4


def test_fewer_training_images_than_neighbours():
    images = noise(0, 2)
    found = memorisation.nearest(images, unlabelled(images))
    np.testing.assert_array_equal(found.index, [[0, 1, -1], [1, 0, -1]])
    apart = rms(images[0], images[1])
    np.testing.assert_allclose(found.distance, [[0, apart, np.inf]] * 2, rtol=1e-14)
    assert memorisation.copies(found).share == 1.0
    assert memorisation.picture(images, unlabelled(images), found).shape == (
        2 * 6 + 1,
        4 * 7 + 1,
        3,
    )
    for alone in (images[:1], images[[0, 0, 0]]):
        found = memorisation.nearest(images, unlabelled(alone))
        np.testing.assert_array_equal(found.index, [[0, -1, -1]] * 2)
        with pytest.raises(UserError, match="two different training images"):
            memorisation.copies(found)
    with pytest.raises(UserError, match="two different training images"):
        memorisation.copies(memorisation.nearest(images, unlabelled(images), k=1))


def test_the_picture_shows_the_samples_of_the_smallest_ratios_with_their_neighbours():
    images, samples = noise(0, 30), noise(1, 12)
    samples[7], samples[2] = images[20], images[9][:, ::-1]
    samples[2, 0, 0, 0] ^= 1
    found = memorisation.nearest(samples, unlabelled(images), flip=True)
    shown = memorisation.picture(samples, unlabelled(images), found)
    assert shown.shape == (10 * 6 + 1, 4 * 7 + 1, 3)
    place = lambda row, column: shown[1 + row * 6 : 6 + row * 6, 1 + column * 7 : 7 + column * 7]
    np.testing.assert_array_equal(place(0, 0), samples[7])
    np.testing.assert_array_equal(place(0, 1), images[20])
    np.testing.assert_array_equal(place(1, 0), samples[2])
    np.testing.assert_array_equal(place(1, 1), images[9][:, ::-1])
    for row, n in enumerate(np.argsort(found.ratio)[:10]):
        for column in range(3):
            image = images[found.index[n, column]]
            expected = image[:, ::-1] if found.mirrored[n, column] else image
            np.testing.assert_array_equal(place(row, column + 1), expected)
    assert (shown[0] == pictures.DARK).all()


@pytest.mark.parametrize(
    ("samples", "images", "complaint"),
    [
        (
            np.zeros((2, 4, 4, 1)),
            noise(0, 3, (4, 4, 1)),
            r"uint8 \[N, H, W, C\], not float64 \[2, 4, 4, 1\]",
        ),
        (noise(0, 3, (4, 4)), noise(0, 3, (4, 4, 1)), r"not uint8 \[3, 4, 4\]"),
        (noise(0, 0), noise(0, 3), r"not uint8 \[0, 5, 6, 3\]"),
        (
            noise(0, 2),
            noise(0, 3, (6, 6, 3)),
            r"training image 0 is uint8 \[6, 6, 3\], but the samples are uint8 \[5, 6, 3\]",
        ),
        (noise(0, 2), noise(0, 0), "the training set is empty"),
    ],
)
def test_what_does_not_fit_is_refused(samples, images, complaint):
    with pytest.raises(UserError, match=complaint):
        memorisation.nearest(samples, unlabelled(images))


def test_numbers_that_make_no_sense_are_refused():
    for options in ({"k": 0}, {"block": 0}):
        with pytest.raises(UserError, match="k and block must be at least 1"):
            memorisation.nearest(noise(0, 2), unlabelled(noise(0, 2)), **options)
    with pytest.raises(
        UserError, match=r"samples of shape \[5, 6, 3\] and held-out images of \[4, 4, 3\]"
    ):
        memorisation.memorisation(noise(0, 2), noise(0, 2, (4, 4, 3)), unlabelled(noise(0, 2)))
