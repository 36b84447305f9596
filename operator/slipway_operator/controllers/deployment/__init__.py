"""The Deployment controller: one RayService, its versions, and the way from one to the next."""
