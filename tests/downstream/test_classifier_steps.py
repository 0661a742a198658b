from pipeline.downstream.fitting import classifier_steps


def test_steps_follow_the_number_of_images_unless_they_are_given():
    assert [classifier_steps(None, n) for n in (10, 400, 10_000)] == [400, 500, 2500]
    assert classifier_steps(7, 10_000) == 7
